package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// capturing is a twill capture that runs beside a daemon.
type capturing struct {
	d    *daemon
	cmd  *netlab.Cmd
	out  bytes.Buffer
	errs testkit.Log
}

// capture starts twill capture beside d, and waits until it captures.
func (d *daemon) capture(flags ...string) *capturing {
	d.t.Helper()
	c := &capturing{d: d}
	before := len(d.stderr.Lines("capture started"))
	c.cmd = d.ns.Command(d.t.Context(), bin("twill"), append([]string{"capture", "--socket=" + d.socket}, flags...)...)
	c.cmd.Stdout, c.cmd.Stderr = &c.out, &c.errs
	testkit.Must(d.t, c.cmd.Start())
	testkit.Eventually(d.t, "the capture has started", func() bool { return len(d.stderr.Lines("capture started")) > before }, c.errs.String)
	return c
}

// captured is a packet in a capture.
type captured struct {
	gopacket.CaptureInfo
	b       []byte
	in      bool
	comment string
}

// end waits for the end of the capture, which stops it first if it has no limit, and
// returns the packets.
func (c *capturing) end(stop bool) (packets []captured) {
	t := c.d.t
	t.Helper()
	if stop {
		testkit.Must(t, c.cmd.Process.Signal(unix.SIGINT))
	}
	if err := c.cmd.Wait(); err != nil {
		t.Fatalf("twill capture: %v\n%s", err, &c.errs)
	}
	r, err := pcapgo.NewNgReader(&c.out, pcapgo.NgReaderOptions{})
	testkit.Must(t, err)
	for {
		b, info, opts, err := r.ReadPacketDataWithOptions()
		if err == io.EOF {
			break
		}
		testkit.Must(t, err)
		packets = append(packets, captured{info, b, opts.Flags.Direction == pcapgo.NgEpbFlagDirectionInbound, strings.Join(opts.Comments, "; ")})
	}
	i, err := r.Interface(0)
	testkit.Must(t, err)
	if n := int(i.Statistics.PacketsReceived - i.Statistics.PacketsDropped); i.LinkType != layers.LinkTypeRaw || n != len(packets) {
		t.Errorf("%d packets, but the statistics are %+v", len(packets), i.Statistics)
	}
	if want := fmt.Sprintf(": %d packets captured, ", len(packets)); !strings.Contains(c.errs.String(), want) {
		t.Errorf("%q, want %q", &c.errs, want)
	}
	return packets
}

// addrs of a pod, of both families.
func bothAddrs(p *netlab.Pod) []netip.Addr { return []netip.Addr{p.Addr, p.Addr6} }

// pod-a ── host a ──────────── host b ── pod-b
//
//	capture              capture
func TestBothEndsCaptureTheSamePackets(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	const stream = 1 << 18 // has room in a ring
	forEngines(t, labOptions{}, func(t *testing.T, l *lab) {
		atA := l.daemons[0].capture("--pod=" + status.Join(bothAddrs(l.pod(0)), ","))
		// The nodes' own probes of the path are not packets of pods.
		atB := l.daemons[1].capture("--peer="+l.underlay(0).String(), "--pod="+status.Join(bothAddrs(l.pod(1)), ","))
		for _, a := range bothAddrs(l.pod(1)) {
			testkit.Must(t, ping(l.pod(0), a, 1000), streams{flows: 1, up: stream}.run(l.pod(0), l.pod(1), a))
		}
		atTheEnd := atB.end(true)    // before a, which may send something again
		sent := make(map[string]int) // how often
		for _, p := range atA.end(true) {
			if p.Length > 1472 || p.Length != len(p.b) {
				t.Errorf("a packet of %d bytes, of which %d were kept, in datagrams of up to 1472", p.Length, len(p.b))
			}
			if p.in {
				continue
			}
			sent[unsummed(p.b)]++
			if want := "to " + l.underlay(1).String(); p.comment != want {
				t.Errorf("sent: %q, want %q", p.comment, want)
			}
		}
		arrived := make(map[netip.Addr]int) // bytes for each destination
		for _, p := range atTheEnd {
			if !p.in {
				continue
			}
			if sent[unsummed(p.b)]--; sent[unsummed(p.b)] < 0 {
				t.Errorf("a packet of %d bytes arrived that was not sent like that", p.Length)
			}
			arrived[destination(p.b)] += p.Length
			if want := "from " + l.underlay(0).String(); p.comment != want {
				t.Errorf("arrived: %q, want %q", p.comment, want)
			}
		}
		for _, a := range bothAddrs(l.pod(1)) {
			if arrived[a] < stream {
				t.Errorf("%d bytes for %s, want those of the stream", arrived[a], a)
			}
		}
	})
}

// host a, a peer ──────────┐
//
//	├── host b ── pod-b
//
// host c, without a lease ─┘
func TestCaptureNamesWhyPacketsAreDropped(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	l := newLab(t, labOptions{nodes: 2, Options: netlab.Options{Hosts: 3}, flags: []string{"--stranger-filter=off"}})
	b := l.daemons[1]
	for reason, drop := range map[string]struct {
		from int
		tos  uint8
		b    []byte
	}{
		"malformed":           {0, 0, addrsOf4.good(1).bytes()[:25]},
		"unknown_peer":        {2, 0, addrsOf4.good(2).bytes()},
		"spoofed_source":      {0, 0, udpPacket(netip.AddrPortFrom(addrsOf4.b, 1), netip.AddrPortFrom(addrsOf4.b, 9), nil).bytes()},
		"foreign_destination": {0, 0, udpPacket(netip.AddrPortFrom(addrsOf4.a, 1), netip.MustParseAddrPort("10.5.3.2:9"), nil).bytes()},
		"congestion":          {0, 3, addrsOf4.good(3).bytes()},
	} {
		c := b.capture("--drop-reason="+reason, "-c=1")
		stop := l.repeatedly(func() { l.inject(drop.from, 1, drop.tos, drop.b) })
		got := c.end(false)
		stop()
		want := fmt.Sprintf("from %s, dropped: %s (", l.underlay(drop.from), reason)
		if len(got) != 1 || !strings.HasPrefix(got[0].comment, want) || !bytes.Equal(got[0].b, drop.b) || !got[0].in {
			t.Errorf("%s: %+v, want %q", reason, got, want)
		}
	}

	c := b.capture("--drop-reason=any", "-c=1", "--snaplen=30")
	stop := l.repeatedly(func() { _ = pingWithin(0, l.pod(1), netip.MustParseAddr("10.5.77.1"), 600) })
	got := c.end(false)
	stop()
	if len(got) != 1 || got[0].comment != "of a pod of this node, dropped: no_route (no peer holds the destination)" || got[0].in ||
		got[0].Length != 600 || len(got[0].b) != 30 {
		t.Errorf("to no node: %+v", got)
	}
}

// repeatedly does something until stop is called.
func (l *lab) repeatedly(do func()) (stop func()) {
	ctx, cancel := context.WithCancel(l.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			do()
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	return func() { cancel(); <-done }
}

// A capture outlives the data plane: a change of the underlay's MTU replaces that.
func TestCaptureGoesOnWhileTheDataPlaneIsReplaced(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	l := newLab(t, labOptions{})
	d := l.daemons[0]
	c := d.capture("-w=-")
	testkit.Must(t, ping(l.pod(0), l.pod(1).Addr, 500))
	d.sh("ip link set dev " + netlab.UnderlayLink + " mtu 1400")
	testkit.Eventually(t, "twilld follows the MTU", func() bool {
		dp := d.status().Dataplane
		return dp != nil && dp.MTU() == 1372
	})
	testkit.Must(t, ping(l.pod(0), l.pod(1).Addr, 600))
	sizes := make(map[int]bool)
	for _, p := range c.end(true) {
		sizes[p.Length] = true
	}
	if !sizes[500] || !sizes[600] {
		t.Errorf("sizes %v, want 500 from before and 600 from after", sizes)
	}
}

func TestCaptureIsRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	l := newLab(t, labOptions{})
	d := l.daemons[0]
	again := func(flags ...string) string {
		cmd := d.ns.Command(t.Context(), bin("twill"), append([]string{"capture", "--socket=" + d.socket}, flags...)...)
		out, err := cmd.CombinedOutput()
		if err == nil {
			t.Errorf("capture %v: %s", flags, out)
		}
		return string(out)
	}
	first := d.capture()
	if out, want := again(), "another capture is in progress"; !strings.Contains(out, want) {
		t.Errorf("%s, want %q", out, want)
	}
	testkit.Must(t, first.cmd.Process.Kill()) // as a closed terminal does
	_ = first.cmd.Wait()
	testkit.Eventually(t, "the death of a client ends its capture", func() bool { return len(d.stderr.Lines("capture ended")) == 1 })
	d.capture("-c=0").end(true)
	if out, want := again("--peer=203.0.113.1"), "no peer of this node has 203.0.113.1"; !strings.Contains(out, want) {
		t.Errorf("%s, want %q", out, want)
	}
	if out, want := again("--drop-reason=tired"), "want malformed, unknown_peer"; !strings.Contains(out, want) {
		t.Errorf("%s, want %q", out, want)
	}
}

// pod-a ── host a ─┬─ host b ─┬─ host c ── pod-c
//
//	auto   │   vxlan  │  udp
func TestCaptureNamesThePeersThatItDoesNotSee(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`, Options: threeHosts})
	c.run(twill("auto", "--backend=auto"), twill("vxlan", "--backend=vxlan"), twill("udp", "--backend=udp"))
	c.waitTalk()
	a := c.running[0].(*daemon)
	run := a.capture("-for=1m")
	testkit.Must(t, ping(c.pod(0), c.pod(2).Addr, 700), ping(c.pod(0), c.pod(1).Addr, 800))
	sizes := make(map[int]bool)
	for _, p := range run.end(true) {
		sizes[p.Length] = true
	}
	if !sizes[700] || sizes[800] {
		t.Errorf("sizes %v, want 700 of the udp peer, not 800 of the vxlan peer", sizes)
	}
	want := fmt.Sprintf("packets of %s; to see them: tcpdump -ni flannel.1 'net %s'", c.nodes[1].Addr, c.nodes[1].Subnet)
	if !strings.Contains(run.errs.String(), want) || strings.Contains(run.errs.String(), c.nodes[2].Addr.String()) {
		t.Errorf("%s, want %q and nothing of host c", &run.errs, want)
	}
	b := c.running[1].(*daemon)
	out, err := b.ns.Command(t.Context(), bin("twill"), "capture", "--peer="+c.nodes[0].Addr.String(), "--socket="+b.socket).CombinedOutput()
	if want := "tcpdump -ni flannel.1 'net " + c.nodes[0].Subnet.String(); err == nil || !strings.Contains(string(out), want) {
		t.Errorf("on a node with vxlan alone: %v, %s; want %q", err, out, want)
	}
}

// unsummed returns an IP packet without its TCP checksum, which a node completes for a
// device that takes no partial ones.
func unsummed(b []byte) string {
	b = bytes.Clone(b)
	switch {
	case b[0]>>4 == 4 && b[9] == unix.IPPROTO_TCP:
		clear(b[20+16 : 20+18])
	case b[0]>>4 == 6 && b[6] == unix.IPPROTO_TCP:
		clear(b[40+16 : 40+18])
	}
	return string(b)
}

// destination returns the destination of an IP packet.
func destination(b []byte) netip.Addr {
	if b[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(b[16:]))
	}
	return netip.AddrFrom16([16]byte(b[24:]))
}
