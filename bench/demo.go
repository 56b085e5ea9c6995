package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/twillnet/twill/bench/report"
	"github.com/twillnet/twill/internal/lab/netlab"
)

const (
	demoPaths  = "twill,floor,twill-vxlan,vxlan"
	demoLoads  = "ping,tcp1,tcp4,udpmtu,rr"
	demoRounds = 3
	// demoDuration makes the demonstration last 60 s.
	demoDuration = time.Second
)

const demoIntro = `Two hosts with a pod each, in network namespaces of this machine; a real twilld on
both. The same load in turn over twill's udp backend, over the floor (a program that
moves packets between TUN and UDP without inspecting them, the least that they cost),
over twill's vxlan backend, and over kernel VXLAN made by hand:

`

// Demo compares twill with kernel VXLAN in under 90 s. It writes
// progress, a table, and evidence that packets went through flannel0 and
// UDP to out, and leaves nothing behind. It needs root.
func Demo(ctx context.Context, bin Binaries, out io.Writer) (err error) {
	if err := needRoot("the demonstration"); err != nil {
		return err
	}
	paths, err := ParsePaths(demoPaths)
	if err != nil {
		return err
	}
	loads, err := ParseLoads(demoLoads)
	if err != nil {
		return err
	}
	io.WriteString(out, demoIntro)
	s, err := newSession(Options{
		Paths: paths, Loads: loads, Rounds: demoRounds, Duration: demoDuration, Binaries: bin,
	}, out)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, s.takeDown()); ctx.Err() != nil {
			err = fmt.Errorf("interrupted, nothing is left behind (%w)", err)
		}
	}()
	if err := s.setUp(ctx, Wires[0]); err != nil {
		return err
	}
	if err := failed(s.report); err != nil {
		return err
	}
	c := s.up[0].conn
	onWire, err := seenOnWire(ctx, c)
	if err != nil {
		return err
	}
	if err := s.measure(ctx, Wires[0], nil); err != nil {
		return err
	}
	if err := s.finish(); err != nil {
		return err
	}
	if err := s.report.WriteSummary(out); err != nil {
		return err
	}
	counted, err := countedOnWay(c)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\nOn the wire: %s.\nInterface counters: %s.\n", onWire, counted)
	return failed(s.report)
}

// failed returns an error that lists everything that did not work, or nil.
func failed(r *report.Report) error {
	if lines := r.Failures(); len(lines) > 0 {
		return errors.New(strings.Join(lines, "\n"))
	}
	return nil
}

// seenOnWire pings at full MTU and describes the largest of these packets as host
// b's eth0 received it.
func seenOnWire(ctx context.Context, c *Connection) (string, error) {
	w, err := newWitness(c)
	if err != nil {
		return "", err
	}
	defer w.close()
	if _, err := fullPing(ctx, c, 0); err != nil {
		return "", err
	}
	return w.testimony()
}

// countedOnWay reports the packet counts of the interfaces on the path from pod a to
// pod b, and fails if they cannot result from the traffic of the demonstration.
func countedOnWay(c *Connection) (string, error) {
	a, b := c.topo.Hosts[0].NS, c.topo.Hosts[1].NS
	var counted []string
	for _, hop := range []struct {
		ns   *netlab.Namespace
		link string
		out  bool
	}{
		{a, tunLink, true}, {a, netlab.UnderlayLink, true}, {b, netlab.UnderlayLink, false}, {b, tunLink, false},
	} {
		link, err := hop.ns.Netlink().LinkByName(hop.link)
		if err != nil {
			return "", fmt.Errorf("%s: find %s: %w", hop.ns, hop.link, err)
		}
		stats := link.Attrs().Statistics
		bytes, direction := stats.RxBytes, "in" // as seen by the kernel, also for a TUN device
		if hop.out {
			bytes, direction = stats.TxBytes, "out"
		}
		if bytes < 100e6 {
			return "", fmt.Errorf("%s: only %d bytes went through %s", hop.ns, bytes, hop.link)
		}
		counted = append(counted, fmt.Sprintf("%s %s %s %.2f GB", hop.ns, hop.link, direction, float64(bytes)/1e9))
	}
	return strings.Join(counted, " → "), nil
}

// needRoot returns an error that explains that the operation what needs root.
func needRoot(what string) error {
	if os.Geteuid() != 0 {
		return errors.New(what + " creates network namespaces and TUN devices, which needs root: run it with sudo")
	}
	return nil
}
