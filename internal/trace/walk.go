package trace

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/internal/status"
)

// Step is one step of the way of a packet.
type Step struct {
	Name   string       `json:"step"`
	Level  doctor.Level `json:"level"`
	Text   string       `json:"text"`
	Remedy string       `json:"remedy,omitempty"`
	// Narrow means that only large packets do not pass.
	Narrow bool `json:"narrow,omitempty"`
	// Proof is a place where a packet that has done this step is seen; nil if there is
	// none, as for what happens inside the kernel.
	Proof *Proof `json:"proof,omitempty"`
	// Seen is how many probes were seen there; it counts only if Proof is not nil.
	Seen int `json:"seen"`
}

// Proof is a place where packets are seen.
type Proof struct {
	Devices []string `json:"devices,omitempty"` // any of them; none: any device at all
	Out     bool     `json:"out"`
	Outer   bool     `json:"outer"`
	Answer  bool     `json:"answer"`
}

// walk collects the steps of a host.
type walk struct {
	*Host
	packet Packet
	steps  []Step
}

func (w *walk) add(name string, proof *Proof, format string, args ...any) {
	w.steps = append(w.steps, Step{Name: name, Level: doctor.OK, Text: fmt.Sprintf(format, args...), Proof: proof})
}

func (w *walk) bad(name, remedy string, proof *Proof, format string, args ...any) {
	w.steps = append(w.steps, Step{Name: name, Level: doctor.Bad, Text: fmt.Sprintf(format, args...), Remedy: remedy, Proof: proof})
}

// also adds what doctor has found in a check, unless a step has the cause already.
func (w *walk) also(name, check string) {
	if w.blamed(name) {
		return
	}
	for _, f := range w.Findings {
		if f.Check == check && f.Level != doctor.OK {
			w.steps = append(w.steps, Step{Name: name, Level: f.Level, Text: f.Text, Remedy: f.Remedy, Narrow: f.Narrow})
		}
	}
}

// Sending returns the steps of p on the node that it comes from.
func Sending(h *Host, p Packet) []Step {
	w := &walk{Host: h, packet: p}
	w.also("twilld", "daemon")
	w.also("pod", "own-subnet")
	w.origin()
	w.route(h.Pod.Dev)
	peer := h.peer(p.To)
	if !h.Local {
		w.firewall(h.Pod.Dev)
	}
	w.also("rules", "rules")
	w.backend(peer)
	w.also("backend", "kernel-path")
	if peer == nil {
		return w.steps
	}
	w.device(peer)
	w.also("device", "devices")
	w.mtu(peer)
	w.outer(peer)
	w.also("underlay", "peers")
	return w.steps
}

// Receiving returns the steps of p on the node that it goes to, and the first of the answer.
func Receiving(h *Host, p Packet) []Step {
	w := &walk{Host: h, packet: p}
	peer := h.peer(p.From)
	w.add("underlay", &Proof{Outer: w.Overhead > 0}, "packets from %s arrive%s", h.Other, by(h.Underlay.Dev))
	w.also("twilld", "daemon")
	if peer != nil && peer.BackendName() != status.KindHostGW {
		w.port(peer)
		w.also("port", "udp-port")
	}
	w.source(peer)
	if peer != nil && peer.BackendName() != status.KindHostGW {
		w.arrival(peer)
	}
	w.also("device", "devices")
	w.also("device", "kernel-path")
	if h.Local {
		w.add("pod", nil, "%s is this node's own address", p.To)
	} else {
		w.route(h.Tunnel)
		w.also("route", "rp-filter")
		w.firewall(h.Tunnel)
		w.also("rules", "rules")
		w.also("pod", "own-subnet")
		w.destination()
	}
	if !h.Local {
		w.add("answer", &Proof{Devices: []string{w.podLink()}, Answer: true}, "from %s%s", p.To, by(w.podLink()))
	}
	proof := &Proof{Out: true, Outer: w.Overhead > 0, Answer: true}
	if devices := h.devices(peer, p.To); len(devices) > 0 && h.Back.Dev != "" && !slices.Contains(devices, h.Back.Dev) {
		w.bad("return", h.Back.delete(p.From), proof, "the route %s makes the answer bypass %s", h.Back, devices[0])
	} else {
		w.add("return", proof, "to %s%s", h.Other, by(h.Underlay.Dev))
	}
	w.also("return", "peers")
	return w.steps
}

// Returning returns the steps of the answer on the node that p comes from.
func Returning(h *Host, p Packet) []Step {
	w := &walk{Host: h, packet: p}
	peer := h.peer(p.To)
	w.add("underlay", &Proof{Outer: w.Overhead > 0, Answer: true}, "answers from %s arrive%s", h.Other, by(h.Underlay.Dev))
	w.also("port", "udp-port")
	w.also("route", "rp-filter")
	proof := &Proof{Devices: h.devices(peer, p.To), Answer: true}
	if !h.Local {
		proof = &Proof{Devices: []string{w.podLink()}, Out: true, Answer: true}
	}
	w.add("answer", proof, "for %s", p.From)
	return w.steps
}

// by names a device in a sentence, if it is known.
func by(dev string) string {
	if dev == "" {
		return ""
	}
	return " on " + dev
}

// origin is where the packet comes from.
func (w *walk) origin() {
	p := w.packet
	proof := &Proof{Devices: []string{w.podLink()}}
	switch own := w.ownSubnets(); {
	case w.Local:
		w.add("pod", nil, "%s is an address of the node itself, so FORWARD does not apply", p.From)
	case !slices.ContainsFunc(own, func(s netip.Prefix) bool { return s.Contains(p.From) }):
		w.bad("pod", "twill doctor", proof, "%s is not in this node's subnet (%s): other nodes drop its packets", p.From, cmp.Or(status.Join(own, ", "), "none"))
	default:
		w.behind(p.From, proof)
	}
}

// away reports whether the route to the pod of this node leads to other nodes.
func (h *Host) away() bool {
	return h.Pod.Dev != "" && (h.Pod.Dev == h.Tunnel || h.Pod.Dev == h.Underlay.Dev)
}

// podLink returns the interface by which the pod of this node is reached.
func (h *Host) podLink() string {
	if h.away() && h.Bridge != "" {
		return h.Bridge
	}
	return h.Pod.Dev
}

// behind adds where a pod of this node is.
func (w *walk) behind(pod netip.Addr, proof *Proof) {
	dev, away := w.Pod.Dev, w.away()
	switch l, ok := w.Links[w.Bridge]; {
	case w.Pod.Err != nil:
		w.bad("pod", "ip route get "+pod.String(), proof, "no route to %s: %v", pod, w.Pod.Err)
	case away && w.blamed("pod"):
		w.bad("pod", "", proof, "packets to %s leave on %s instead", pod, dev)
	case away && ok && !l.Up:
		w.bad("pod", "ip link set dev "+w.Bridge+" up", proof, "%s, the bridge of the pods, is down: packets to %s leave on %s", w.Bridge, pod, dev)
	case away:
		w.bad("pod", "ip route get "+pod.String(), proof, "packets to %s leave on %s", pod, dev)
	default:
		w.link("pod", dev, proof, "%s is behind %s, MTU %d", pod, dev, w.Links[dev].MTU)
	}
}

// link adds a step that takes a device, which must be up.
func (w *walk) link(name, dev string, proof *Proof, format string, args ...any) {
	switch l, ok := w.Links[dev]; {
	case !ok:
		w.bad(name, "systemctl restart twilld", proof, "the device %s does not exist", cmp.Or(dev, "of the backend"))
	case !l.Up:
		w.bad(name, "ip link set dev "+dev+" up", proof, "%s is down", dev)
	default:
		w.add(name, proof, format, args...)
	}
}

// route is the way through the routing table, of a packet that enters by in.
func (w *walk) route(in string) {
	w.also("route", "forwarding")
	r, p := w.Way, w.packet
	devices := w.devices(w.peer(p.From), p.To)
	switch {
	case r.Err != nil && w.blamed("route"):
	case errors.Is(r.Err, unix.EXDEV) || errors.Is(r.Err, unix.EINVAL) && w.Back.Dev != "" && !slices.Contains(devices, w.Back.Dev):
		// Since Linux 6.14 the error is EINVAL whatever the reason.
		w.bad("route", w.Back.delete(p.From), nil, "the reverse path filter of %s drops it, because the answer would take the route %s", in, w.Back)
	case r.Err != nil:
		w.bad("route", fmt.Sprintf("ip route get %s from %s iif %s", p.To, p.From, in), nil, "the kernel has no route to %s from %s: %v", p.To, p.From, r.Err)
	case r.Dev == "":
		w.bad("route", "ip route get "+p.To.String(), nil, "the route to %s has no device", p.To)
	default:
		w.add("route", nil, "%s", r)
	}
}

// blamed reports whether a step is known to be the cause.
func (w *walk) blamed(name string) bool {
	return slices.ContainsFunc(w.steps, func(s Step) bool { return s.Name == name && s.Level == doctor.Bad })
}

// String returns the route in the syntax of ip-route(8).
func (r Route) String() string {
	text := cmp.Or(r.Dst, "a route")
	if r.Via.IsValid() {
		text += " via " + r.Via.String()
	}
	text += " dev " + r.Dev
	if r.Table != 0 && r.Table != unix.RT_TABLE_MAIN {
		text += fmt.Sprintf(" table %d", r.Table)
	}
	return text
}

// firewall is what FORWARD and POSTROUTING do with a packet that enters by in.
func (w *walk) firewall(in string) {
	if w.Firewall == nil {
		w.steps = append(w.steps, Step{Name: "rules", Level: doctor.Warn, Text: w.Problem})
		return
	}
	p := w.packet.firewall(in, w.Way.Dev)
	w.verdict("FORWARD", w.Firewall.Forward(p))
	if v := w.Firewall.Source(p); !v.Accept {
		w.steps = append(w.steps, Step{Name: "rules", Level: doctor.Warn, Remedy: v.Remedy,
			Text: fmt.Sprintf("%s has this node's address after %s", w.packet.From, v.Rule)})
	}
}

// verdict adds what a chain does.
func (w *walk) verdict(chain string, v doctor.Verdict) {
	level, text := doctor.OK, chain+" accepts it"
	if !v.Accept {
		level, text = doctor.Bad, chain+" drops it"
	}
	if v.Rule != "" {
		text += ": " + v.Rule
	}
	if v.Unless != "" {
		text += ", unless an earlier rule decides: " + v.Unless
		if level == doctor.Bad {
			level = doctor.Warn
		}
	}
	w.steps = append(w.steps, Step{Name: "rules", Level: level, Text: text, Remedy: v.Remedy})
}

// backend is which one is used, and why it is used.
func (w *walk) backend(peer *status.Peer) {
	if peer == nil {
		w.bad("backend", "twill leases", nil, "no node has a lease for %s: twilld drops packets to it", w.packet.To)
		return
	}
	text := fmt.Sprintf("%s to %s", peer.BackendName(), peer.PublicIP)
	switch {
	case peer.Kernel:
		text += ", over the kernel path"
	case peer.KernelWhy != "":
		text += ", in user space: " + peer.KernelWhy
	case peer.BackendName() == "udp":
		text += ", in user space"
	}
	if why := w.Document.BackendWhy; why != "" && len(w.Document.Backends) > 0 && peer.BackendName() == w.Document.Backends[0] {
		text += fmt.Sprintf(" (%s)", why)
	}
	for _, n := range peer.Notes {
		text += "; " + n
	}
	w.add("backend", nil, "%s", text)
}

// device is the one that the packet leaves by.
func (w *walk) device(peer *status.Peer) {
	devices := w.devices(peer, w.packet.To)
	proof := &Proof{Devices: devices, Out: true}
	if len(devices) == 0 {
		w.bad("device", "systemctl restart twilld", nil, "twilld has no device for %s", peer.BackendName())
		return
	}
	if w.Way.Dev != "" && !slices.Contains(devices, w.Way.Dev) {
		w.bad("device", w.Way.delete(w.packet.To), proof, "the route %s bypasses %s, the device of %s", w.Way, devices[0], peer.BackendName())
		return
	}
	dev := devices[0]
	l := w.Links[dev]
	switch {
	case peer.BackendName() != status.KindVXLAN || !l.Up:
		w.link("device", dev, proof, "%s, MTU %d", dev, l.MTU)
	case w.Hop.MAC == "":
		w.bad("device", "systemctl restart twilld", proof, "%s has no neighbour entry for %s", dev, w.Way.Via)
	case !w.Hop.To.IsValid() || w.Hop.To.Is4() == peer.PublicIP.Is4() && w.Hop.To != peer.PublicIP:
		w.bad("device", "systemctl restart twilld", proof, "%s has no FDB entry for %s to %s", dev, w.Hop.MAC, peer.PublicIP)
	default:
		w.add("device", proof, "%s, MTU %d, VNI %d; %s has the MAC %s, with an FDB entry to %s", dev, l.MTU, l.VNI, w.Way.Via, w.Hop.MAC, w.Hop.To)
	}
}

// delete returns the command that deletes the route.
func (r Route) delete(to netip.Addr) string {
	if to.Is6() {
		return "ip -6 route delete " + r.String()
	}
	return "ip route delete " + r.String()
}

// Largest returns the size in bytes of the largest packet that pods of h may send to the
// other end, and 0 if it is unknown.
func (h *Host) Largest(p Packet) int {
	peer := h.peer(p.To)
	devices := h.devices(peer, p.To)
	if len(devices) == 0 {
		return 0
	}
	largest := h.Links[devices[0]].MTU
	if l, ok := h.Links[h.Pod.Dev]; ok && !h.Local {
		largest = min(largest, l.MTU)
	}
	if peer.MTU > 0 {
		largest = min(largest, peer.MTU)
	}
	return largest
}

// mtu compares what the devices on the way take.
func (w *walk) mtu(peer *status.Peer) {
	largest, over := w.Largest(w.packet), w.Overhead
	if largest == 0 {
		return
	}
	under := cmp.Or(w.Underlay.MTU, w.Links[w.Underlay.Dev].MTU)
	sum := fmt.Sprintf("%d", largest)
	if over > 0 {
		sum = fmt.Sprintf("%d + %d = %d", largest, over, largest+over)
	}
	switch {
	case under > 0 && largest+over > under:
		w.steps = append(w.steps, Step{Name: "mtu", Level: doctor.Bad, Narrow: true,
			Text:   fmt.Sprintf("packets of up to %s bytes do not fit %s, MTU %d", sum, w.Underlay.Dev, under),
			Remedy: fmt.Sprintf("ip link set dev %s mtu %d", w.Underlay.Dev, largest+over)})
	case peer.MTU > 0:
		w.steps = append(w.steps, Step{Name: "mtu", Level: doctor.Warn, Narrow: true,
			Text: fmt.Sprintf("packets of up to %s bytes: twilld has found that the path loses larger ones", sum)})
	default:
		w.add("mtu", nil, "packets of up to %s bytes fit %s, MTU %d", sum, cmp.Or(w.Underlay.Dev, "the underlay"), under)
	}
}

// outer is the packet that carries it, on the underlay.
func (w *walk) outer(peer *status.Peer) {
	proof := &Proof{Out: true, Outer: w.Overhead > 0}
	if w.Underlay.Err != nil {
		w.bad("underlay", "ip route get "+w.Other.String(), proof, "no route to %s: %v", w.Other, w.Underlay.Err)
		return
	}
	text := "unchanged"
	switch peer.BackendName() {
	case status.KindVXLAN:
		l := w.Links[w.Tunnel]
		text = fmt.Sprintf("in VXLAN %d over UDP to %s, %d bytes added", l.VNI, netip.AddrPortFrom(w.Hop.To, uint16(l.Port)), w.Overhead)
	case "udp":
		text = fmt.Sprintf("in UDP to %s, %d bytes added", netip.AddrPortFrom(peer.PublicIP, w.Document.Dataplane.Port), w.Overhead)
	}
	text += by(w.Underlay.Dev)
	if w.Underlay.Via.IsValid() {
		text += " via " + w.Underlay.Via.String()
	}
	w.link("underlay", w.Underlay.Dev, proof, "%s", text)
}

// port is the firewall that datagrams of the other node have to pass.
func (w *walk) port(peer *status.Peer) {
	port := int(w.Links[w.Tunnel].Port)
	if peer.BackendName() == "udp" {
		port = int(w.Document.Dataplane.Port)
	}
	if w.Firewall == nil {
		w.steps = append(w.steps, Step{Name: "port", Level: doctor.Warn, Text: w.Problem})
		return
	}
	if peer.Kernel {
		w.add("port", nil, "UDP port %d: the kernel path receives datagrams before INPUT", port)
		return
	}
	if w.Other.Is4() != w.packet.To.Is4() {
		return // the rules at hand are those of the other family; doctor reads them
	}
	v := w.Firewall.Input(doctor.Packet{In: w.Underlay.Dev, Src: w.Other, Proto: "udp", Port: port})
	n := len(w.steps)
	w.verdict(fmt.Sprintf("UDP port %d: INPUT", port), v)
	w.steps[n].Name = "port"
}

// source is the check whether the other node may send for the packet's source.
func (w *walk) source(peer *status.Peer) {
	p := w.packet
	switch {
	case w.Document == nil || w.Document.Dataplane == nil:
	case peer == nil && p.From == w.Other:
		w.add("source", nil, "%s is the other node itself", p.From)
	case peer == nil:
		w.bad("source", "twill leases", nil, "this node knows no lease for %s", p.From)
	case w.Other.IsValid() && peer.PublicIP != w.Other:
		w.bad("source", "twill leases", nil, "according to the leases here, %s belongs to %s, not to %s", p.From, peer.PublicIP, w.Other)
	case peer.BackendName() == "udp":
		w.add("source", nil, "%s is in a subnet of %s (source check: %s)", p.From, peer.PublicIP, w.Document.Dataplane.SourceCheck)
	default:
		w.add("source", nil, "%s is in a subnet of %s; %s checks no more than the kernel's reverse path filter", p.From, peer.PublicIP, peer.BackendName())
	}
}

// arrival is the device on which the packet arrives.
func (w *walk) arrival(peer *status.Peer) {
	devices := w.devices(peer, w.packet.To)
	dev := w.Tunnel
	w.link("device", dev, &Proof{Devices: devices}, "%s, MTU %d", dev, w.Links[dev].MTU)
}

// destination is the pod that the packet is for.
func (w *walk) destination() {
	p, dev := w.packet, w.podLink()
	proof := &Proof{Devices: []string{dev}, Out: true}
	if w.PodState == "failed" {
		w.bad("pod", fmt.Sprintf("ip neigh show %s dev %s", p.To, dev), proof, "no pod answers for %s on %s: the pod has ended, or was never on this node", p.To, dev)
		return
	}
	w.behind(p.To, proof)
}
