package connectivity

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// helloTime bounds the time until a part says hello: doctor takes the longest, which
	// waits for nodes that do not answer.
	helloTime = 2 * time.Minute
	// resultTime bounds the time between two answers of a part, besides the waiting that
	// was asked of it.
	resultTime = time.Minute
	// startsAtOnce bounds the parts that are being started, as logins may be costly.
	startsAtOnce = 16
	// endTime is how long a part may take to end.
	endTime = 5 * time.Second
)

// Member is a node of the test.
type Member struct {
	Node    netip.Addr     // its public address
	Other   netip.Addr     // that of the other family; invalid if it has none
	Subnets []netip.Prefix // its lease's
	// Start runs the node's part; nil: the node is an end of the tests only.
	Start func(context.Context) (Connection, error)
}

// has reports whether e, which the part of m has said, can be an end of m: no node has the
// others send to an address of its choice.
func (m *Member) has(e End) bool {
	ours := !e.Addr.IsValid() || e.Subnet.Contains(e.Addr) || e.Addr == m.Node || e.Addr == m.Other
	return ours && e.Size >= 0 && e.Size <= math.MaxUint16
}

// Connection leads to a part.
type Connection struct {
	In  io.WriteCloser
	Out io.Reader
	// Wait waits for the end of the part after In is closed, or after the context of its
	// start is done.
	Wait func() error
}

// Options are what a test is to do.
type Options struct {
	Members  []Member
	Wait     time.Duration // for each answer
	Parallel int           // nodes that test at the same time
	Port     uint16        // to listen on; 0: any that is free
	Progress func(Progress)
}

// Progress is how far a test has come.
type Progress struct {
	Asked, Nodes  int // parts that have answered or failed, and all
	Ways, AllWays int // tested, and all
	Failed        int // ways on which a test has failed
}

// String returns a line for people.
func (p Progress) String() string {
	if p.AllWays == 0 {
		return fmt.Sprintf("%d of %d nodes have answered", p.Asked, p.Nodes)
	}
	return fmt.Sprintf("%d of %d paths tested, %d failed", p.Ways, p.AllWays, p.Failed)
}

// run is a test.
type run struct {
	Options
	report *Report

	mu       sync.Mutex
	progress Progress
}

// Run tests from each member that has a part to all others. An error means that there is
// no report.
func Run(ctx context.Context, o Options) (*Report, error) {
	cookie := make([]byte, cookieLen)
	_, _ = rand.Read(cookie) // never fails
	r := &run{Options: o, report: &Report{Nodes: make([]NodeReport, len(o.Members))}}
	for i, m := range o.Members {
		r.report.Nodes[i] = NodeReport{Node: m.Node, Subnets: m.Subnets, Asked: m.Start != nil}
		if m.Start != nil {
			r.progress.Nodes++
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	parts := make([]*remotePart, len(o.Members))
	r.each(startsAtOnce, func(i int) {
		if o.Members[i].Start == nil {
			return
		}
		p, hello, err := r.start(ctx, i, cookie)
		if err != nil {
			r.report.Nodes[i].fail(err)
		} else {
			parts[i], r.report.Nodes[i].hello = p, hello
			r.report.Nodes[i].Findings = hello.Findings
		}
		r.note(func(p *Progress) { p.Asked++ })
	})
	for i := range parts {
		if parts[i] != nil {
			r.progress.AllWays += len(r.ends(i))
		}
	}
	results := make([][]Result, len(parts))
	r.each(max(o.Parallel, 1), func(i int) {
		if parts[i] != nil {
			results[i] = r.row(ctx, i, parts[i])
		}
	})
	r.each(len(parts), func(i int) {
		if parts[i] != nil {
			_ = parts[i].end() // what matters of it has been reported
		}
	})
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	for _, row := range results {
		slices.SortFunc(row, func(a, b Result) int { // they have come as they were ready
			return cmp.Or(a.To.Compare(b.To), a.Subnet.Addr().Compare(b.Subnet.Addr()))
		})
		r.report.Results = append(r.report.Results, row...)
	}
	r.report.conclude()
	return r.report, nil
}

// each calls f with the number of each member, and at most n at the same time.
func (r *run) each(n int, f func(i int)) {
	var all sync.WaitGroup
	slots := make(chan struct{}, n)
	for i := range r.Members {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			f(i)
		})
	}
	all.Wait()
}

func (r *run) note(change func(*Progress)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.progress)
	if r.Progress != nil {
		r.Progress(r.progress)
	}
}

// ends returns where tests from member number i go.
func (r *run) ends(i int) (all []End) {
	for j, m := range r.Members {
		if j == i {
			continue
		}
		for _, s := range m.Subnets {
			e := End{Node: m.Node, Subnet: s}
			if h := r.report.Nodes[j].hello; h != nil {
				for _, its := range h.Ends {
					if its.Subnet.Masked() == s.Masked() && m.has(its) {
						e = its
						e.Node = m.Node
					}
				}
			}
			all = append(all, e)
		}
	}
	return all
}

// start starts the part of member number i and waits for its hello.
func (r *run) start(ctx context.Context, i int, cookie []byte) (*remotePart, *Hello, error) {
	ctx, stop := context.WithCancel(ctx)
	c, err := r.Members[i].Start(ctx)
	if err != nil {
		stop()
		return nil, nil, err
	}
	p := connect(ctx, stop, c)
	var a answer
	if err = p.ask(request{Start: &start{Protocol: protocol, Cookie: cookie, Port: r.Port}}); err == nil {
		a, err = p.next(ctx, helloTime)
	}
	switch {
	case err != nil:
	case a.Hello == nil:
		err = errors.New("its twill does not answer with a hello message; it may have another version")
	case a.Hello.Protocol != protocol:
		err = fmt.Errorf("its twill has another version: it speaks protocol %d, this one %d", a.Hello.Protocol, protocol)
	}
	if err != nil {
		ended := p.end()
		if errors.Is(err, errEnded) && ended != nil {
			err = ended
		}
		return nil, nil, err
	}
	return p, a.Hello, nil
}

// row has a part test its ways.
func (r *run) row(ctx context.Context, i int, p *remotePart) (results []Result) {
	from := r.Members[i].Node
	ends := r.ends(i)
	err := p.ask(request{Test: &test{Ends: ends, Wait: r.Wait}})
	for err == nil {
		var a answer
		if a, err = p.next(ctx, 4*r.Wait+resultTime); err != nil || a.Done {
			break
		}
		if a.Result == nil || len(results) == len(ends) {
			err = errors.New("its twill does not answer with results")
			break
		}
		a.Result.From = from
		results = append(results, *a.Result)
		r.note(func(p *Progress) {
			p.Ways++
			if a.Result.Failed() {
				p.Failed++
			}
		})
	}
	if err == nil && len(results) < len(ends) {
		err = fmt.Errorf("its twill tested only %d of %d paths", len(results), len(ends))
	}
	if err != nil {
		r.report.Nodes[i].fail(err)
	}
	return results
}

// remotePart is the coordinator's side of a part. It belongs to one goroutine at a time.
type remotePart struct {
	Connection
	requests *json.Encoder
	answers  chan answer // closed at the end
	err      error       // why, once answers is closed
	stop     context.CancelFunc
}

// errEnded means that a part has ended before its time.
var errEnded = errors.New("its twill exited")

// connect begins to read the answers of a part. stop ends ctx, with which it was started.
func connect(ctx context.Context, stop context.CancelFunc, c Connection) *remotePart {
	p := &remotePart{Connection: c, requests: json.NewEncoder(c.In), answers: make(chan answer), stop: stop}
	go func() {
		defer close(p.answers)
		lines := bufio.NewScanner(c.Out)
		lines.Buffer(nil, maxLine)
		for lines.Scan() {
			var a answer
			if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
				p.err = fmt.Errorf("its twill answers %.60q", lines.Text())
				return
			}
			select {
			case p.answers <- a:
			case <-ctx.Done():
				p.err = context.Cause(ctx)
				return
			}
		}
		if p.err = lines.Err(); p.err == nil {
			p.err = errEnded
		}
	}()
	return p
}

func (p *remotePart) ask(r request) error {
	if err := p.requests.Encode(r); err != nil {
		return errEnded // EPIPE says less than what it has written
	}
	return nil
}

// next returns the next answer.
func (p *remotePart) next(ctx context.Context, within time.Duration) (answer, error) {
	late := time.NewTimer(within)
	defer late.Stop()
	select {
	case a, ok := <-p.answers:
		if !ok {
			return a, p.err
		}
		return a, nil
	case <-late.C:
		return answer{}, fmt.Errorf("its twill did not answer within %s", within)
	case <-ctx.Done():
		return answer{}, context.Cause(ctx)
	}
}

// end ends the part.
func (p *remotePart) end() error {
	_ = p.In.Close()
	defer time.AfterFunc(endTime, p.stop).Stop()
	defer p.stop()
	for range p.answers { // so that it can write them
	}
	return p.Wait()
}
