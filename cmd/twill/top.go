package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/internal/top"
)

const aboutTop = `Shows the current traffic of this node, by device and by peer, and what is dropped and
why. Peers whose packets the kernel carries (vxlan, host-gw) are counted only together,
by their device. On a terminal the page is updated continuously; s sorts by another
column, q quits. Otherwise, and with --once, it is printed once, after one interval.`

func runTop(ctx context.Context, call *command.Call) error {
	once := call.Bool("once", false, "print the page once and exit")
	asJSON := call.Bool("json", false, "print JSON, once")
	interval := call.Duration("interval", time.Second, "`TIME` between readings of the counters")
	by := call.String("sort", string(top.ByTraffic), "`ORDER` of the peers: traffic, packets, heard or address")
	socket := call.String("socket", status.DefaultSocket, aboutSocket)
	if help, err := call.ParseFlags(aboutTop); help || err != nil {
		return err
	}
	order := top.Order(*by)
	switch {
	case *interval < 100*time.Millisecond:
		return call.Usagef("--interval %s: want at least 100ms", *interval)
	case !slices.Contains(top.Orders, order):
		return call.Usagef("--sort %s: want traffic, packets, heard or address", *by)
	}
	sample := func(ctx context.Context) (top.Sample, error) { return takeSample(ctx, *socket) }
	if !*once && !*asJSON && isTerminal(call.Stdout) {
		if _, err := sample(ctx); err != nil {
			return err // fail at once instead of showing a page with the error
		}
		return top.Watch(ctx, top.Options{Sample: sample, Interval: *interval, By: order})
	}
	before, err := sample(ctx)
	if err != nil {
		return err
	}
	select {
	case <-time.After(*interval):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	after, err := sample(ctx)
	if err != nil {
		return err
	}
	page := top.Compare(before, after)
	page.Sort(order)
	if *asJSON {
		return writeJSON(call.Stdout, page)
	}
	_, err = io.WriteString(call.Stdout, page.Text(widthOf(call.Stdout), 0, 0, order))
	return err
}

// takeSample asks the daemon, and the kernel for the counters of its devices.
func takeSample(ctx context.Context, socket string) (top.Sample, error) {
	d, err := fetchStatus(ctx, socket)
	if err != nil {
		return top.Sample{}, err
	}
	s := top.Sample{At: time.Now(), Document: d, Devices: make(map[string]top.Counters)}
	if d.Dataplane == nil {
		return s, nil
	}
	for _, dev := range d.Dataplane.Devices {
		link, err := netlink.LinkByName(dev.Name)
		if err != nil {
			return s, fmt.Errorf("read counters of %s: %w; run twill in the network namespace of twilld", dev.Name, err)
		}
		if c := link.Attrs().Statistics; c != nil {
			s.Devices[dev.Name] = top.Counters{TXPackets: c.TxPackets, TXBytes: c.TxBytes, RXPackets: c.RxPackets, RXBytes: c.RxBytes}
		}
	}
	return s, nil
}

func isTerminal(w io.Writer) bool { return widthOf(w) > 0 }

// widthOf returns the number of columns of a terminal; 0 if w is not one.
func widthOf(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}
