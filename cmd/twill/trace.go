package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/internal/trace"
)

const aboutTrace = `Follows a packet from a pod of this node to a pod of another: route, firewall rules,
backend and why, device, MTU, outer header, the other node's port, source check, route
and pod. Then it sends a few small packets with a mark, and some of full size, and shows
how many were seen at each step, there and back, and which counters rose meanwhile. If
they do not come back, it names the last place where one was seen, the cause, and the
command that repairs it.

FROM is the address of a pod of this node, or this node's public address or subnet for
the node itself. TO is the address of a pod, or a node by its public address, name or
subnet. PROTOCOL is icmp, tcp or udp, the last two with a PORT: an echo request, a SYN or
a datagram. The packets are sent in the network namespace of the pod, if a process of
this host or a name in /run/netns leads there, and otherwise by the node itself, so that
they do not pass FORWARD.

With --via twill also runs on the other node. Run it as root.

Exit code: 0 if the packets were answered or, with udp, delivered; 1 if not, 2 for any
other error.`

// errNotArrived makes the exit code 1. What is wrong has been printed.
var errNotArrived = errors.New("trace: the packet does not get through, see above")

// tracePatience bounds the work of the twill on the other node.
const tracePatience = 2 * time.Minute

// traceCommand is the subcommand.
type traceCommand struct {
	*fleetCommand
	wait   time.Duration
	part   string
	packet trace.Packet
	mark   trace.Mark
}

func runTrace(ctx context.Context, call *command.Call) error {
	c := &traceCommand{fleetCommand: newFleetCommand(call)}
	c.Stderr = io.Discard // doctor's findings cover the store's warnings
	asJSON := c.Bool("json", false, "print JSON instead of a page")
	c.DurationVar(&c.wait, "W", 2*time.Second, "`TIME` to wait for answers")
	c.StringVar(&c.part, "part", "", "arguments of the twill that runs on the node of TO: `MARK,BYTES,NODE`")
	operands, help, err := c.parse(ctx, aboutTrace+aboutVia, "FROM TO [PROTOCOL [PORT]]")
	switch {
	case help || err != nil:
		return err
	case len(operands) < 2:
		return c.Usagef("want FROM and TO: addresses of pods, or nodes")
	case c.wait <= 0:
		return c.Usagef("-W %s: want more than 0", c.wait)
	}
	if err := c.packet.ParseProto(operands[2:]); err != nil {
		return c.Usagef("%v", err)
	}
	if err := c.readVia(); err != nil {
		return err
	}
	if c.part != "" {
		if err := c.serve(ctx, operands); err != nil {
			return command.Fatal(err)
		}
		return nil
	}
	r, err := c.trace(ctx, operands[0], operands[1])
	if err != nil {
		return command.Fatal(err)
	}
	if *asJSON {
		err = writeJSON(c.Stdout, r)
	} else {
		err = r.WritePage(c.Stdout)
	}
	if err == nil && !r.OK {
		err = errNotArrived
	}
	return err
}

// resolve sets the addresses of the packet, and returns the peer that it goes to, or nil.
func (c *traceCommand) resolve(ctx context.Context, from, to string) (*status.Peer, error) {
	d := c.daemon
	switch {
	case d == nil:
		return nil, c.daemonErr
	case d.Lease == nil:
		return nil, fmt.Errorf("twilld has no lease yet: it is waiting for %s", d.Waiting)
	}
	var peer *status.Peer
	p := &c.packet
	t, err := findTarget(ctx, d, to)
	if err == nil {
		peer = &t.peer
		// Behind plain routes the node has no address but that of its pods' bridge.
		if p.To = t.tunnel.To; !p.To.IsValid() {
			p.To = t.peer.Subnets[0].Masked().Addr().Next()
		}
	} else if p.To, err = netip.ParseAddr(to); err != nil {
		return nil, fmt.Errorf("%q is not a node, subnet or address; %s", to, peersText(d))
	}
	if slices.ContainsFunc(d.Lease.Subnets(), func(s netip.Prefix) bool { return s.Contains(p.To) }) {
		return nil, fmt.Errorf("%s is in this node's own subnet: packets to it do not leave the node", p.To)
	}
	if p.From, err = sourceOf(d, from, p.To); err != nil {
		return nil, err
	}
	if other, err := findTarget(ctx, d, from); err == nil {
		return nil, fmt.Errorf("%s is on the node %s; run twill trace there", from, other.peer.PublicIP)
	}
	if p.From.Is4() != p.To.Is4() {
		return nil, fmt.Errorf("%s and %s belong to different address families", p.From, p.To)
	}
	return peer, nil
}

// sourceOf returns the address that packets to an address have if they come from what is
// called from: a pod, or this node by its public address or subnet.
func sourceOf(d *status.Document, from string, to netip.Addr) (netip.Addr, error) {
	l := d.Lease
	a, err := netip.ParseAddr(from)
	if err == nil && a != l.PublicIP && a != l.PublicIPv6 {
		return a.Unmap(), nil
	}
	if s, notSubnet := netip.ParsePrefix(from); err != nil && (notSubnet != nil || s != l.Subnet && s != l.IPv6Subnet) {
		return a, fmt.Errorf("%q is neither the address of a pod nor this node (%s with %s)", from, cmp.Or(l.PublicIP, l.PublicIPv6), l.Subnet)
	}
	routes, err := netlink.RouteGet(to.AsSlice())
	if err != nil || len(routes) == 0 {
		return a, fmt.Errorf("find the address from which this node reaches %s: %w", to, err)
	}
	a, _ = netip.AddrFromSlice(routes[0].Src)
	return a.Unmap(), nil
}

// trace follows a packet from this node.
func (c *traceCommand) trace(ctx context.Context, from, to string) (*trace.Report, error) {
	peer, err := c.resolve(ctx, from, to)
	if err != nil {
		return nil, err
	}
	c.mark = trace.Mark(rand.Uint32() &^ 1)
	r := &trace.Report{Packet: c.packet, From: cmp.Or(c.daemon.Lease.PublicIP, c.daemon.Lease.PublicIPv6)}
	if peer != nil {
		r.To, r.Backend = peer.PublicIP, peer.BackendName()
	}
	h := trace.ReadHost(ctx, c.node(ctx), trace.Question{Packet: c.packet, Sending: true, Other: r.To})
	r.Sender.Steps = trace.Sending(h, c.packet)
	var other *otherPart
	if peer != nil {
		r.Sender.Back = trace.Returning(h, c.packet)
		ctx, cancel := context.WithTimeoutCause(ctx, tracePatience, fmt.Errorf("not done within %s", tracePatience))
		defer cancel()
		if other, err = c.startPart(ctx, r, h.Overhead); err != nil {
			r.Missing = err.Error()
		}
	}
	err = c.watch(ctx, &r.Sender, h.Overhead, func(t *trace.Tap) error {
		r.Sent = c.packet.Send(c.mark, h.Largest(c.packet), h.Local)
		for until := time.Now().Add(c.wait); time.Now().Before(until) && ctx.Err() == nil; {
			r.Sender.Sights = t.Sights()
			if r.Sender.Answered() == [2]int{r.Sent.Small, r.Sent.Full} {
				break
			}
			if err := t.Wait(50 * time.Millisecond); err != nil {
				return err
			}
		}
		return context.Cause(ctx)
	})
	if err != nil {
		return nil, err
	}
	if other != nil {
		if r.Receiver, err = other.end(); err != nil {
			r.Missing = err.Error()
		}
	}
	r.Conclude()
	return r, nil
}

// watch calls probe with a tap, and adds to a part what is seen and counted meanwhile.
func (c *traceCommand) watch(ctx context.Context, p *trace.Part, overhead int, probe func(*trace.Tap) error) error {
	t, err := trace.NewTap(c.packet, c.mark, overhead)
	if err != nil {
		return err
	}
	defer t.Close()
	before := c.counters(ctx)
	if err := probe(t); err != nil {
		return err
	}
	p.Sights = t.Sights()
	p.Rose = trace.Rose(before, c.counters(ctx))
	return nil
}

func (c *traceCommand) counters(ctx context.Context) []trace.Counter {
	d, _ := fetchStatus(ctx, c.socket)                  // the steps say that none answers
	f, _ := doctor.ReadFirewall(ctx, c.packet.To.Is6()) // and that it cannot be read
	return trace.ReadCounters(d, f)
}

// otherPart is the part of the other node, which runs there.
type otherPart struct {
	*running
	lines *bufio.Reader
}

// maxPart bounds what is read of the other node.
const maxPart = 4 << 20

// startPart starts twill on the node of TO, and waits until it watches.
func (c *traceCommand) startPart(ctx context.Context, r *trace.Report, overhead int) (*otherPart, error) {
	if !c.via.IsSet() {
		return nil, errors.New("--via must say how to run twill there")
	}
	nodes, err := c.members(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(nodes, func(m member) bool { return m.Addr == r.To })
	if i < 0 {
		return nil, fmt.Errorf("no node with a lease is at %s", r.To)
	}
	args := append([]string{"trace", fmt.Sprintf("--part=%d,%d,%s", c.mark, overhead, r.From), c.packet.From.String(), c.packet.To.String()}, c.packet.Words()...)
	started, err := c.start(ctx, nodes[i], args...)
	if err != nil {
		return nil, err
	}
	o := &otherPart{started, bufio.NewReader(io.LimitReader(started.out, maxPart))}
	if line, err := o.lines.ReadString('\n'); line != partReady {
		_ = o.in.Close()
		return nil, cmp.Or(o.wait(), context.Cause(ctx), err, errors.New("its twill has another version"))
	}
	return o, nil
}

// partReady is the line by which a part reports that it watches.
const partReady = "watching\n"

// end ends the part, and returns what it has found.
func (o *otherPart) end() (*trace.Part, error) {
	_ = o.in.Close()
	p := new(trace.Part)
	err := json.NewDecoder(o.lines).Decode(p)
	if ended := o.wait(); ended != nil {
		err = ended
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// serve watches on the node of TO until standard input ends, and writes what was found.
func (c *traceCommand) serve(ctx context.Context, operands []string) error {
	var overhead int
	var node string
	_, err := fmt.Sscanf(c.part, "%d,%d,%s", &c.mark, &overhead, &node)
	sender, errSender := netip.ParseAddr(node)
	var errFrom, errTo error
	c.packet.From, errFrom = netip.ParseAddr(operands[0])
	c.packet.To, errTo = netip.ParseAddr(operands[1])
	if err := errors.Join(err, errSender, errFrom, errTo); err != nil {
		return fmt.Errorf("--part %s: %w", c.part, err)
	}
	var p trace.Part
	err = c.watch(ctx, &p, overhead, func(*trace.Tap) error {
		_, err := io.WriteString(c.Stdout, partReady)
		if err == nil {
			_, err = io.Copy(io.Discard, os.Stdin)
		}
		return err
	})
	if err != nil {
		return err
	}
	h := trace.ReadHost(ctx, c.node(ctx), trace.Question{Packet: c.packet, Other: sender, Overhead: overhead})
	p.Steps = trace.Receiving(h, c.packet)
	return json.NewEncoder(c.Stdout).Encode(p)
}
