package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/echo"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/internal/textpage"
)

const aboutPing = `Pings another node twice per round: at its public address, and through the tunnel or
route that pods' packets take to it. It shows which backend carries them, the time of
both, and the largest packet that passes each without being fragmented.

TARGET is the public address of a node, a name that resolves to it, its pod subnet, or
the address of a pod. Unless it is a pod, the answer comes from the node's own end of the
tunnel. Run it as root.

Exit code: 0 if packets pass the tunnel, 1 if none do, 2 for any other error.`

// errNoAnswer makes the exit code 1. What was lost has been printed.
var errNoAnswer = errors.New("ping: no answer came through the tunnel")

// target is the node to ping.
type target struct {
	peer     status.Peer
	underlay echo.Ping
	tunnel   echo.Ping // its address is invalid if the node has no address in the tunnel
	widest   [2]int    // largest packets to try on each
}

// pingReport is the output of --json.
type pingReport struct {
	Peer     status.Peer `json:"peer"`
	Underlay wayReport   `json:"underlay"`
	Tunnel   wayReport   `json:"tunnel"`
}

// wayReport is what the pings on one way have found. Times are in milliseconds; they
// are absent if nothing was answered.
type wayReport struct {
	To       netip.Addr `json:"to"`
	Sent     int        `json:"sent"`
	Answered int        `json:"answered"`
	Min      float64    `json:"min_ms,omitempty"`
	Average  float64    `json:"avg_ms,omitempty"`
	Max      float64    `json:"max_ms,omitempty"`
	Largest  int        `json:"largest_packet,omitempty"` // bytes, IP header included
}

func runPing(ctx context.Context, call *command.Call) error {
	count := call.Int("c", 5, "number of `ROUNDS`")
	interval := call.Duration("i", time.Second, "`TIME` between rounds")
	wait := call.Duration("W", time.Second, "`TIME` to wait for answers in each round")
	asJSON := call.Bool("json", false, "print JSON at the end, and nothing before")
	socket := call.String("socket", status.DefaultSocket, aboutSocket)
	operands, help, err := call.ParseOperands(aboutPing, "TARGET")
	switch {
	case help || err != nil:
		return err
	case len(operands) != 1:
		return call.Usagef("want one TARGET: a node's public address or name, a pod subnet, or a pod's address")
	case *count < 1 || *interval <= 0 || *wait <= 0:
		return call.Usagef("-c, -i and -W must be more than 0")
	}
	d, err := fetchStatus(ctx, *socket)
	if err != nil {
		return command.Fatal(err)
	}
	t, err := findTarget(ctx, d, operands[0])
	if err != nil {
		return command.Fatal(err)
	}
	progress := call.Stdout
	if *asJSON {
		progress = io.Discard
	}
	report := pingReport{Peer: t.peer, Underlay: wayReport{To: t.underlay.To}, Tunnel: wayReport{To: t.tunnel.To}}
	io.WriteString(progress, t.describe())
	if err := t.rounds(ctx, progress, &report, *count, *interval, *wait); err != nil {
		return command.Fatal(err)
	}
	if *asJSON {
		err = writeJSON(call.Stdout, report)
	} else {
		_, err = io.WriteString(call.Stdout, report.summary())
	}
	if err == nil && report.Tunnel.Answered == 0 {
		err = errNoAnswer
	}
	return err
}

// fetchStatus is status.Fetch with the timeout of all commands.
func fetchStatus(ctx context.Context, socket string) (*status.Document, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	return status.Fetch(ctx, socket)
}

// findTarget returns the peer that name means.
func findTarget(ctx context.Context, d *status.Document, name string) (*target, error) {
	if d.Dataplane == nil {
		return nil, fmt.Errorf("twilld has no peers yet: it is waiting for %s", cmp.Or(d.Waiting, "its lease"))
	}
	t := &target{}
	subnet, err := netip.ParsePrefix(name)
	var addrs []netip.Addr
	if err == nil {
		addrs = []netip.Addr{subnet.Masked().Addr()}
	} else if a, err := netip.ParseAddr(name); err == nil {
		addrs = []netip.Addr{a.Unmap()}
	} else {
		ctx, cancel := context.WithTimeout(ctx, statusTimeout)
		defer cancel()
		if addrs, err = net.DefaultResolver.LookupNetIP(ctx, "ip", name); err != nil {
			return nil, fmt.Errorf("%q is not an address or a subnet, and does not resolve as a name: %w", name, err)
		}
	}
	for _, a := range addrs {
		if t.choose(d, a.Unmap(), subnet.IsValid()) {
			t.measure(d)
			return t, nil
		}
	}
	return nil, fmt.Errorf("no peer of this node has %s; %s", name, peersText(d))
}

// choose sets the peer that has a as its public address or in one of its subnets, and
// where to ping it.
func (t *target) choose(d *status.Document, a netip.Addr, isSubnet bool) bool {
	for _, p := range d.Dataplane.Peers {
		in := slices.IndexFunc(p.Subnets, func(s netip.Prefix) bool { return s.Contains(a) })
		if p.PublicIP != a && in < 0 || len(p.Subnets) == 0 {
			continue
		}
		t.peer, t.underlay.To = p, p.PublicIP
		switch {
		case in >= 0 && !isSubnet:
			t.tunnel.To = a // a pod
		case p.Backend != status.KindHostGW:
			t.tunnel.To = p.Subnets[max(in, 0)].Masked().Addr()
		}
		return true
	}
	return false
}

// measure sets the sizes of pings.
func (t *target) measure(d *status.Document) {
	t.underlay.Size, t.tunnel.Size = echo.Smallest, echo.Smallest
	t.widest = [2]int{1500, 1500}
	if d.Underlay != nil && d.Underlay.MTU > 0 {
		t.widest[0] = d.Underlay.MTU
	}
	if mtu := d.Dataplane.MTU(); mtu > 0 {
		t.widest[1] = mtu
	}
}

// peersText lists the peers for a user who named none.
func peersText(d *status.Document) string {
	const most = 5
	var all []string
	for _, p := range d.Dataplane.Peers[:min(most, len(d.Dataplane.Peers))] {
		all = append(all, fmt.Sprintf("%s with %s", p.PublicIP, status.Join(p.Subnets, ",")))
	}
	switch more := len(d.Dataplane.Peers) - len(all); {
	case len(all) == 0:
		return "it has no peers"
	case more > 0:
		return fmt.Sprintf("its peers are %s and %d more (twill leases lists them)", strings.Join(all, "; "), more)
	}
	return "its peers are " + strings.Join(all, "; ")
}

// describe returns the first lines of the output: the peer, and how it is reached.
func (t *target) describe() string {
	var p textpage.Page
	p.Text(2, "", fmt.Sprintf("node %s with %s, over %s", t.peer.PublicIP, status.Join(t.peer.Subnets, ", "), cmp.Or(t.peer.Backend, "udp")))
	for _, n := range t.peer.Notes {
		p.Text(4, "  ", n)
	}
	if !t.tunnel.To.IsValid() {
		p.Text(4, "  ", "it is reached over plain routes, where only pods answer: name the address of a pod")
	}
	return p.String()
}

// rounds pings the target, and finds the largest packets after that.
func (t *target) rounds(ctx context.Context, w io.Writer, r *pingReport, count int, interval, wait time.Duration) error {
	both := []echo.Ping{t.underlay, t.tunnel}
	for i := range count {
		start := time.Now()
		got, err := echo.Once(ctx, both, wait)
		if err != nil && ctx.Err() == nil {
			return err
		}
		io.WriteString(w, r.round(i+1, got, t))
		if i == count-1 {
			break
		}
		select {
		case <-ctx.Done():
			return nil // what has been found so far is printed
		case <-time.After(interval - time.Since(start)):
		}
	}
	for i, way := range []*wayReport{&r.Underlay, &r.Tunnel} {
		if way.Answered == 0 || ctx.Err() != nil {
			continue
		}
		full := []echo.Ping{{To: way.To, Size: t.widest[i]}}
		passes, err := echo.Answers(ctx, full)
		if err != nil {
			return err
		}
		if way.Largest = t.widest[i]; passes[way.To] {
			continue
		}
		fits, err := echo.Widest(ctx, full)
		if err != nil {
			return err
		}
		way.Largest = fits[way.To]
	}
	return nil
}

// round counts a round, and returns its line.
func (r *pingReport) round(n int, got map[echo.Ping]time.Duration, t *target) string {
	return fmt.Sprintf("round %d: underlay %s, tunnel %s\n", n, r.Underlay.add(got, t.underlay), r.Tunnel.add(got, t.tunnel))
}

// summary returns the last lines of the output: what all rounds have found.
func (r *pingReport) summary() string {
	var p textpage.Page
	p.Line("")
	p.Text(10, "underlay: ", r.Underlay.String())
	p.Text(10, "tunnel:   ", r.Tunnel.String())
	return p.String()
}

// add counts a round, and describes it.
func (r *wayReport) add(got map[echo.Ping]time.Duration, p echo.Ping) string {
	if !p.To.IsValid() {
		return "not tried"
	}
	r.Sent++
	rtt, ok := got[p]
	if !ok {
		return "lost"
	}
	ms := float64(rtt) / float64(time.Millisecond)
	r.Average = (r.Average*float64(r.Answered) + ms) / float64(r.Answered+1)
	r.Answered++
	if r.Answered == 1 {
		r.Min = ms
	}
	r.Min, r.Max = min(r.Min, ms), max(r.Max, ms)
	return fmt.Sprintf("%.3f ms", ms)
}

// String describes all rounds.
func (r wayReport) String() string {
	if r.Sent == 0 {
		return "not tried"
	}
	text := fmt.Sprintf("%d of %d lost to %s", r.Sent-r.Answered, r.Sent, r.To)
	if r.Answered > 0 {
		text += fmt.Sprintf(", min/avg/max %.3f/%.3f/%.3f ms", r.Min, r.Average, r.Max)
	}
	if r.Largest > 0 {
		text += fmt.Sprintf(", largest packet %d bytes", r.Largest)
	}
	return text
}
