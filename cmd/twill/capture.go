package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/metrics"
)

const aboutCapture = `Captures the packets of pods that pass through twilld on this node, as they are inside
the datagrams of the udp backend, in the pcapng format of Wireshark:

  twill capture | wireshark -k -i -
  twill capture -w drops.pcapng --drop-reason=any

Each packet has its direction and a comment with the node at the other end and, if it was
dropped, the reason (frame.comment contains "dropped" in Wireshark). Packets that arrive
faster than they can be written are missing from the capture, but still reach the pods; they
are counted. The capture stops at the first limit that is reached, or on Ctrl-C.

twilld does not see packets that the kernel carries: those of vxlan, host-gw and the kernel
path. For such peers, the tcpdump command that shows them is printed.`

func runCapture(ctx context.Context, call *command.Call) error {
	file := call.String("w", "-", "`FILE` to write to; - for standard output")
	peers := call.String("peer", "", "only packets to and from these `NODES`: comma-separated public addresses, names or pod subnets")
	pods := call.String("pod", "", "only packets to and from these `ADDRESSES` of pods: comma-separated addresses or subnets")
	drops := call.String("drop-reason", "", "only packets dropped for these comma-separated `REASONS`, or any; twill status lists those that have occurred")
	count := call.Uint64("c", 0, "stop after this `NUMBER` of packets; 0: no limit")
	size := call.Int64("max-bytes", 1_000_000_000, "stop after this `NUMBER` of bytes; 0: no limit")
	during := call.Duration("for", 10*time.Minute, "stop after this `TIME`")
	snaplen := call.Int("snaplen", 0, "keep only the first `BYTES` of each packet; 0: all")
	socket := call.String("socket", status.DefaultSocket, aboutSocket)
	if help, err := call.ParseFlags(aboutCapture); help || err != nil {
		return err
	}
	o := status.CaptureOptions{Snaplen: *snaplen, Packets: *count, Bytes: *size, For: *during}
	switch {
	case *snaplen < 0 || *size < 0:
		return call.Usagef("--snaplen and --max-bytes must not be negative")
	case *during <= 0 || *during > status.LongestCapture:
		return call.Usagef("--for %s: want more than 0 and at most %s", *during, status.LongestCapture)
	case *file == "-" && isTerminal(call.Stdout):
		return call.Usagef("standard output is a terminal: write to a file with -w FILE, or to a program: | wireshark -k -i -")
	}
	var err error
	if o.Pods, err = podsOf(*pods); err != nil {
		return call.Usagef("--pod: %v", err)
	}
	if o.Drops, err = reasonsOf(*drops); err != nil {
		return call.Usagef("--drop-reason: %v", err)
	}
	d, err := fetchStatus(ctx, *socket)
	if err != nil {
		return err
	}
	if o.Peers, err = publicOf(ctx, d, *peers); err != nil {
		return err
	}
	if err := unseen(call.Stderr, d, &o); err != nil {
		return err
	}
	out, closeOut, err := captureTo(call, *file)
	if err != nil {
		return err
	}
	sum, err := status.Capture(ctx, *socket, o, out)
	if err = errors.Join(err, closeOut()); err == nil {
		_, err = fmt.Fprintf(call.Stderr, "ended %s: %d packets captured, %d lost\n", sum.Ended, sum.Captured, sum.Lost)
	}
	return err
}

// captureTo opens the file for a capture. Only its owner may read it: it contains the pods'
// traffic.
func captureTo(call *command.Call, path string) (w io.Writer, end func() error, err error) {
	if path == "-" {
		return call.Stdout, func() error { return nil }, nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("capture: %w", err)
	}
	fmt.Fprintf(call.Stderr, "capturing to %s, Ctrl-C ends it\n", path)
	return f, f.Close, nil
}

// list returns the words of a text that are separated by commas.
func list(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
}

func podsOf(text string) (pods []netip.Prefix, err error) {
	for _, word := range list(text) {
		p, err := netip.ParsePrefix(word)
		if err != nil {
			a, addrErr := netip.ParseAddr(word)
			if addrErr != nil {
				return nil, fmt.Errorf("%q is neither an address nor a subnet", word)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		pods = append(pods, p.Masked())
	}
	return pods, nil
}

func reasonsOf(text string) (drops []metrics.Drop, err error) {
	var all []string
	for d := range metrics.NumDrops {
		if all = append(all, d.String()); text == "any" {
			drops = append(drops, d)
		}
	}
	if text == "any" {
		return drops, nil
	}
	for _, word := range list(text) {
		d, ok := metrics.DropNamed(word)
		if !ok {
			return nil, fmt.Errorf("%q is not a drop reason: want %s, or any", word, strings.Join(all, ", "))
		}
		drops = append(drops, d)
	}
	return drops, nil
}

// publicOf returns the public addresses of the peers that are named in a text.
func publicOf(ctx context.Context, d *status.Document, text string) (addrs []netip.Addr, err error) {
	for _, name := range list(text) {
		t, err := findTarget(ctx, d, name)
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, t.peer.PublicIP)
	}
	return addrs, nil
}

// unseen reports the packets that o selects but twilld does not see. It returns an error if
// twilld sees none of them.
func unseen(w io.Writer, d *status.Document, o *status.CaptureOptions) error {
	if d.Dataplane == nil {
		return nil // not yet
	}
	const most = 3
	blind := slices.DeleteFunc(slices.Clone(d.Dataplane.Peers), func(p status.Peer) bool {
		return p.Counted() && !p.Kernel || len(p.Subnets) == 0 || len(o.Peers) > 0 && !slices.Contains(o.Peers, p.PublicIP)
	})
	for _, p := range blind[:min(most, len(blind))] {
		by := p.Backend
		if p.Kernel {
			by = "the kernel path"
		}
		fmt.Fprintf(w, "not captured, since the kernel carries them over %s: packets of %s; to see them: %s\n", by, p.PublicIP, kernelsView(d, p))
	}
	if more := len(blind) - most; more > 0 {
		fmt.Fprintf(w, "the same applies to %d more peers\n", more)
	}
	switch {
	case len(d.Shards) == 0:
		return errors.New("no packets pass through twilld on this node: the kernel carries all of them")
	case len(o.Peers) > 0 && len(blind) >= len(o.Peers):
		return errors.New("none of the selected packets pass through twilld: the kernel carries them")
	}
	if slices.Contains(o.Drops, metrics.DropUnknownPeer) && slices.ContainsFunc(d.Dataplane.Offloads, func(f status.Offload) bool {
		return f.Name == "stranger-filter" && f.InForce
	}) {
		fmt.Fprintln(w, "not captured: unknown_peer, since the kernel drops them before twilld sees them; start twilld with --stranger-filter=off, or see", underlayView(d, "udp port "+fmt.Sprint(d.Dataplane.Port)))
	}
	return nil
}

// kernelsView returns the command that shows the packets of a peer that the kernel
// carries.
func kernelsView(d *status.Document, p status.Peer) string {
	filter := "net " + status.Join(p.Subnets, " or net ")
	switch {
	case p.Kernel:
		return underlayView(d, fmt.Sprintf("udp port %d and host %s", d.Dataplane.Port, p.PublicIP))
	case p.Backend == status.KindHostGW:
		return underlayView(d, filter)
	}
	device := "any"
	if routes, err := netlink.RouteGet(p.Subnets[0].Addr().AsSlice()); err == nil && len(routes) > 0 {
		if link, err := netlink.LinkByIndex(routes[0].LinkIndex); err == nil {
			device = link.Attrs().Name
		}
	}
	return fmt.Sprintf("tcpdump -ni %s '%s'", device, filter)
}

// underlayView returns the command that shows what a filter lets through on the
// underlay.
func underlayView(d *status.Document, filter string) string {
	device := "any"
	if d.Underlay != nil {
		device = d.Underlay.Name
	}
	return fmt.Sprintf("tcpdump -ni %s '%s'", device, filter)
}
