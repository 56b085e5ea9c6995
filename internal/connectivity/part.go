package connectivity

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/internal/echo"
	"github.com/twillnet/twill/internal/status"
)

// atOnce bounds the ends that a part tests by TCP and UDP at the same time.
const atOnce = 8

// Node is what is known of the node of a part.
type Node struct {
	Document *status.Document // of its twilld
	Findings []doctor.Finding
}

// Serve runs the part of a node until the end of in. It sends pings in the network
// namespace of the calling thread.
func Serve(ctx context.Context, n Node, in io.Reader, out io.Writer) error {
	requests := bufio.NewScanner(in)
	requests.Buffer(nil, maxLine)
	p := part{node: n, out: json.NewEncoder(out)}
	first, err := next(requests)
	switch {
	case err != nil:
		return err
	case first.Start == nil || len(first.Start.Cookie) != cookieLen:
		return errors.New("connectivity: the first request is not a start request")
	}
	ctx, cancel := context.WithCancel(ctx)
	s := newServer(ctx, first.Start.Cookie)
	defer s.close()
	defer cancel() // before close, which waits for connections
	p.cookie = first.Start.Cookie
	if err := p.answer(answer{Hello: p.hello(s, first.Start.Port)}); err != nil {
		return err
	}
	for {
		r, err := next(requests)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case r.Test == nil:
			return errors.New("connectivity: the request is not a test")
		}
		if err := p.test(ctx, *r.Test); err != nil {
			return err
		}
		if err := p.answer(answer{Done: true}); err != nil {
			return err
		}
	}
}

func next(requests *bufio.Scanner) (r request, err error) {
	if !requests.Scan() {
		return r, cmp.Or(requests.Err(), io.EOF)
	}
	if err := json.Unmarshal(requests.Bytes(), &r); err != nil {
		return r, fmt.Errorf("connectivity: read request: %w; --part is for use by another twill", err)
	}
	return r, nil
}

// part is one end of the tests.
type part struct {
	node   Node
	cookie []byte

	mu  sync.Mutex
	out *json.Encoder
}

func (p *part) answer(a answer) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Encode(a)
}

// hello listens, and describes the node.
func (p *part) hello(s *server, port uint16) *Hello {
	h := &Hello{Protocol: protocol}
	for _, f := range p.node.Findings {
		if f.Level != doctor.OK {
			h.Findings = append(h.Findings, f)
		}
	}
	d := p.node.Document
	if d == nil {
		return h
	}
	h.Facts = factsOf(d)
	if d.Dataplane != nil {
		h.MTU, h.Table = d.Dataplane.MTU(), tableOf(d.Dataplane.Peers)
	}
	if d.Lease == nil {
		return h
	}
	addrs, _ := net.InterfaceAddrs() // without them nothing can be listened on
	for _, own := range []struct {
		subnet netip.Prefix
		public netip.Addr
	}{{d.Lease.Subnet, d.Lease.PublicIP}, {d.Lease.IPv6Subnet, d.Lease.PublicIPv6}} {
		if !own.subnet.IsValid() {
			continue
		}
		e := End{Node: cmp.Or(d.Lease.PublicIP, d.Lease.PublicIPv6), Subnet: own.subnet.Masked(), Size: h.MTU}
		if e.Addr = among(addrs, own.subnet); !e.Addr.IsValid() {
			e.Addr = own.public
		}
		var err error
		if e.TCP, e.UDP, err = s.listen(e.Addr, port); err != nil {
			h.Findings = append(h.Findings, doctor.Finding{Check: "connectivity", Level: doctor.Warn, Text: fmt.Sprintf("TCP and UDP to %s are not tested: %v", own.subnet, err)})
			e.TCP, e.UDP = 0, 0
		}
		h.Ends = append(h.Ends, e)
	}
	return h
}

// among returns the address of this host in its subnet by which it takes part. That of a
// bridge is better than the first of the subnet, which tunnel devices have: hosts that
// forward IPv6 have the first as an anycast address too (RFC 4291, section 2.6.1), and
// kernels before 5.14 treat it as a broadcast address in IPv4, so neither accepts
// connections.
func among(addrs []net.Addr, subnet netip.Prefix) (best netip.Addr) {
	for _, a := range addrs {
		ip, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		addr, ok := netip.AddrFromSlice(ip.IP)
		if addr = addr.Unmap(); !ok || !subnet.Contains(addr) {
			continue
		}
		if !best.IsValid() || best == subnet.Masked().Addr() {
			best = addr
		}
	}
	return best
}

func tableOf(peers []status.Peer) (all []Path) {
	for i := range peers {
		for _, s := range peers[i].Subnets {
			all = append(all, Path{s, peers[i].PublicIP, peers[i].BackendName()})
		}
	}
	return all
}

// factsOf returns what nodes of one network usually have in common.
func factsOf(d *status.Document) []Fact {
	facts := []Fact{
		{"twilld", d.Version},
		{"network", status.Join(d.Network, ",")},
		{"backend", d.Backend},
		{"backends", strings.Join(d.Backends, ",")},
	}
	if dp := d.Dataplane; dp != nil {
		facts = append(facts, Fact{"MTU", fmt.Sprint(dp.MTU())})
		if dp.Port != 0 {
			facts = append(facts, Fact{"UDP port", fmt.Sprint(dp.Port)}, Fact{"source check", dp.SourceCheck})
		}
	}
	if r := d.Rules; r != nil {
		facts = append(facts, Fact{"rules", fmt.Sprintf("nftables %t, masquerade %t, forward %t", r.NFTables, r.Masquerade, r.Forward)})
	}
	return append(facts, Fact{"leases", fmt.Sprint(d.Source.Leases)})
}

// way is a test to one end.
type way struct {
	Result
	end  End
	from netip.Addr // this node's, of the same family
	full int        // size of the packets that should arrive
}

// test tests the way to each end, and answers with the results.
func (p *part) test(ctx context.Context, t test) error {
	x := prober{p.cookie, t.Wait}
	ways := p.ways(t.Ends)
	if err := x.ping(ctx, ways); err != nil {
		return err
	}
	var all sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	errs := make([]error, len(ways))
	for i, w := range ways {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			x.carry(ctx, w)
			errs[i] = p.answer(answer{Result: &w.Result})
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// ways prepares the tests.
func (p *part) ways(ends []End) []*way {
	d := p.node.Document
	var table []Path
	var self netip.Addr
	mtu := 0
	if d != nil && d.Dataplane != nil {
		table, mtu = tableOf(d.Dataplane.Peers), d.Dataplane.MTU()
	}
	if d != nil && d.Lease != nil {
		self = cmp.Or(d.Lease.PublicIP, d.Lease.PublicIPv6)
	}
	addrs, _ := net.InterfaceAddrs()
	var all []*way
	for _, e := range ends {
		w := &way{end: e, Result: Result{From: self, To: e.Node, Subnet: e.Subnet, Addr: e.Addr}, full: e.Size}
		if i := slices.IndexFunc(table, func(p Path) bool { return p.Subnet.Masked() == e.Subnet.Masked() }); i >= 0 {
			w.Backend = table[i].Backend
			if !w.Addr.IsValid() {
				peer := status.Peer{PublicIP: table[i].Public, Subnets: []netip.Prefix{e.Subnet}, Backend: w.Backend}
				w.Addr = peer.Target()
			}
		}
		if mtu > 0 && (w.full == 0 || mtu < w.full) {
			w.full = mtu
		}
		if d != nil && d.Lease != nil {
			own := d.Lease.Subnet
			if e.Subnet.Addr().Is6() {
				own = d.Lease.IPv6Subnet
			}
			w.from = among(addrs, own)
		}
		all = append(all, w)
	}
	return all
}

// ping pings all ends, small and as large as pods may send.
func (x *prober) ping(ctx context.Context, ways []*way) error {
	small := func(w *way) echo.Ping { return echo.Ping{To: w.Addr, Size: echo.Smallest} }
	var pings []echo.Ping
	for _, w := range ways {
		if w.Addr.IsValid() {
			pings = append(pings, small(w))
		}
	}
	got, err := x.pings(ctx, pings)
	if err != nil {
		return err
	}
	var full []echo.Ping
	for _, w := range ways {
		rtt, ok := got[small(w)]
		o := Outcome{Test: testPing, OK: ok, Millis: millis(rtt)}
		switch {
		case !w.Addr.IsValid():
			o.Detail = fmt.Sprintf("no path to %s", w.Subnet)
		case !ok:
			o.Detail = "no answer from " + w.Addr.String()
		case w.full > echo.Smallest:
			full = append(full, echo.Ping{To: w.Addr, Size: w.full})
		}
		w.Tests = append(w.Tests, o)
	}
	if got, err = x.pings(ctx, full); err != nil {
		return err
	}
	narrow := slices.DeleteFunc(slices.Clone(full), func(p echo.Ping) bool { _, ok := got[p]; return ok })
	fits, err := echo.Widest(ctx, narrow)
	if err != nil {
		return err
	}
	for _, w := range ways {
		rtt, ok := got[echo.Ping{To: w.Addr, Size: w.full}]
		o := Outcome{Test: testMTU, OK: ok, Millis: millis(rtt)}
		if !w.Tests[0].OK {
			o.Skipped, o.Detail = true, "not tried: smaller packets get no answer"
		} else if !ok {
			o.Detail = fmt.Sprintf("packets of up to %d bytes arrive, but not those of %d", fits[w.Addr], w.full)
		}
		w.Tests = append(w.Tests, o)
	}
	return nil
}

// carry tests a way by TCP and UDP.
func (x *prober) carry(ctx context.Context, w *way) {
	const nobody = "not tried: nothing listens there"
	tcp, udp := Outcome{Test: testTCP}, Outcome{Test: testUDP}
	switch start := time.Now(); {
	case w.end.TCP == 0:
		tcp.Skipped, tcp.Detail = true, nobody
	default:
		err := x.tcp(ctx, w.from, netip.AddrPortFrom(w.Addr, w.end.TCP))
		if tcp.OK = err == nil; tcp.OK {
			tcp.Millis = millis(time.Since(start))
		} else {
			tcp.Detail = plain(err).Error()
		}
	}
	switch {
	case w.end.UDP == 0:
		udp.Skipped, udp.Detail = true, nobody
	default:
		lost, err := x.udp(ctx, w.from, netip.AddrPortFrom(w.Addr, w.end.UDP), w.full)
		if udp.OK = err == nil; !udp.OK {
			udp.Detail = fmt.Sprintf("packets of %d bytes: %v", w.full, plain(err))
		} else if lost > 0 {
			udp.Detail = fmt.Sprintf("%d of %d datagrams lost", lost, lost+1)
		}
	}
	w.Tests = append(w.Tests, tcp, udp)
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
