package trace

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/twillnet/twill/internal/doctor"
)

// Part is what one node contributes: its steps, and what its tap and counters have seen.
type Part struct {
	Steps  []Step    `json:"steps"`
	Back   []Step    `json:"back,omitempty"` // of the answer, on the node that the packet comes from
	Sights []Sight   `json:"seen,omitempty"`
	Rose   []Counter `json:"counters,omitempty"` // by how much counters rose meanwhile
}

// Answered returns how many answers to small and to full-size probes have arrived at the
// end of the way back.
func (p *Part) Answered() (n [2]int) {
	if i := len(p.Back) - 1; i >= 0 {
		n = [2]int{count(p.Sights, *p.Back[i].Proof, false), count(p.Sights, *p.Back[i].Proof, true)}
	}
	return n
}

// Report is the result of a trace.
type Report struct {
	Packet  Packet     `json:"packet"`
	From    netip.Addr `json:"from_node"`
	To      netip.Addr `json:"to_node,omitzero"`
	Backend string     `json:"backend,omitempty"`

	Sender   Part   `json:"sender"`
	Receiver *Part  `json:"receiver,omitempty"`
	Missing  string `json:"receiver_missing,omitempty"` // why there is no Receiver

	Sent     Sent   `json:"sent"`
	Answered [2]int `json:"answered"` // small probes, full ones

	OK       bool   `json:"ok"`
	LastSeen string `json:"last_seen,omitempty"`
	Cause    string `json:"cause,omitempty"`
	Remedy   string `json:"remedy,omitempty"`
	// On is the node where the remedy belongs.
	On netip.Addr `json:"remedy_on,omitzero"`
}

// located is a step with the node that does it.
type located struct {
	*Step
	on   netip.Addr
	part *Part
}

// way returns all steps in the order of the packet.
func (r *Report) way() (all []located) {
	add := func(on netip.Addr, p *Part, steps []Step) {
		for i := range steps {
			all = append(all, located{&steps[i], on, p})
		}
	}
	add(r.From, &r.Sender, r.Sender.Steps)
	if r.Receiver != nil {
		add(r.To, r.Receiver, r.Receiver.Steps)
	}
	add(r.From, &r.Sender, r.Sender.Back)
	return all
}

// Conclude compares steps with sights, and names what is wrong.
func (r *Report) Conclude() {
	way := r.way()
	for _, s := range way {
		if s.Proof != nil {
			s.Seen = count(s.part.Sights, *s.Proof, false)
		}
	}
	r.Answered = r.Sender.Answered()
	switch {
	case r.Answered[0] > 0 && (r.Sent.Full == 0 || r.Answered[1] > 0):
		r.OK = true
	case r.Answered[0] > 0:
		r.narrow(way)
	case r.Packet.Proto == UDP && r.delivered():
		r.OK = true
	default:
		r.lost(way)
	}
}

// count returns how many probes of a size were seen at a place.
func count(sights []Sight, p Proof, full bool) (n int) {
	for _, s := range sights {
		if s.Out == p.Out && s.Outer == p.Outer && s.Answer == p.Answer && s.Full == full &&
			(len(p.Devices) == 0 || slices.Contains(p.Devices, s.Device)) {
			n = max(n, s.Count) // one behind the other sees the same
		}
	}
	return n
}

// delivered reports whether probes have reached the far end of the way.
func (r *Report) delivered() (yes bool) {
	if r.Receiver == nil {
		return false
	}
	for _, s := range r.Receiver.Steps {
		if s.Proof != nil && !s.Proof.Answer {
			yes = s.Seen > 0
		}
	}
	return yes
}

// lost names why no probe came back: what is bad between the last place where one was seen
// and the next where it was not; what has dropped as many packets there; or else whatever
// is bad.
func (r *Report) lost(way []located) {
	last, next := -1, len(way)
	for i, s := range way {
		if s.Proof != nil && s.Seen > 0 {
			last = i
		}
	}
	for i := len(way) - 1; i > last; i-- {
		if way[i].Proof != nil {
			next = i
		}
	}
	on := r.From
	switch {
	case last >= 0:
		on = way[last].on
		r.LastSeen = fmt.Sprintf("on %s, %s", on, way[last].place())
	case r.Sent.Small == 0 && r.Sent.Problem != "":
		r.LastSeen = "nowhere: " + r.Sent.Problem
	default:
		r.LastSeen = "nowhere"
	}
	end := min(next+1, len(way)) // with what else is known of that step
	for end < len(way) && end > 0 && way[end].Proof == nil && way[end].Name == way[end-1].Name {
		end++
	}
	suspects := way[last+1 : end]
	if r.blame(suspects, doctor.Bad) || r.dropped(suspects, on) || r.blame(suspects, doctor.Warn) || r.blame(way, doctor.Bad) {
		return
	}
	r.On = on
	switch {
	case r.Receiver == nil && last >= 0 && way[last].Name == "underlay":
		r.Cause = fmt.Sprintf("the packet left this node, and %s was not examined: %s", r.To, r.Missing)
		r.Remedy = fmt.Sprintf("twill trace --via 'ssh root@{node} twill' %s %s %s", r.Packet.From, r.Packet.To, strings.Join(r.Packet.Words(), " "))
	case last >= 0 && r.Receiver != nil && way[last].part == r.Receiver && !way[last].Proof.Answer && (next == len(way) || way[next].Proof.Answer):
		r.Cause = fmt.Sprintf("the packet was delivered, and %s does not answer %s", r.Packet.To, strings.Join(r.Packet.Words(), " "))
	case last >= 0 && next < len(way) && way[last].on != way[next].on:
		r.Cause = fmt.Sprintf("the packet was lost between the nodes: the network drops it on the way to %s", way[next].on)
		r.Remedy = fmt.Sprintf("tcpdump -ni any host %s", way[last].on)
	default:
		r.Cause = "no rule, route or counter that was read explains the loss"
		r.Remedy = "twill doctor"
	}
}

// place describes where a step was seen.
func (s located) place() string {
	verb := "arriving"
	if s.Proof.Out {
		verb = "leaving"
	}
	if s.Proof.Answer {
		verb = "the answer " + verb
	}
	for _, one := range s.part.Sights {
		if count([]Sight{one}, *s.Proof, one.Full) > 0 {
			return fmt.Sprintf("%s on %s", verb, one.Device)
		}
	}
	return verb
}

// blame takes the first of steps with a level as the cause.
func (r *Report) blame(steps []located, level doctor.Level) bool {
	for _, s := range steps {
		if s.Level == level {
			r.Cause, r.Remedy, r.On = s.Text, s.Remedy, s.on
			return true
		}
	}
	return false
}

// remedies of what twilld drops, by the reason.
var remedies = map[string]string{
	"unknown_peer": "twill leases", "spoofed_source": "twill leases", "foreign_destination": "twill leases",
	"no_route": "twill leases", "too_big": "twill ping", "send_error": "twill doctor",
}

// dropped takes a counter as the cause that rose by as much as probes are missing, on one
// of the nodes of the suspects.
func (r *Report) dropped(suspects []located, last netip.Addr) bool {
	parts := map[netip.Addr]*Part{r.From: &r.Sender}
	if r.Receiver != nil {
		parts[r.To] = r.Receiver
	}
	nodes := []netip.Addr{last}
	for _, s := range suspects {
		if !slices.Contains(nodes, s.on) {
			nodes = append(nodes, s.on)
		}
	}
	for _, kind := range []string{byRule, byTwilld, byKernel, byDevice} {
		for _, on := range nodes {
			for _, c := range parts[on].Rose {
				if c.Kind == kind && c.Count >= uint64(r.Sent.Small) && r.Sent.Small > 0 {
					r.Cause, r.Remedy, r.On = c.sentence(), c.Remedy, on
					return true
				}
			}
		}
	}
	return false
}

// narrow names why full-size probes got lost where small ones did not.
func (r *Report) narrow(way []located) {
	last := -1
	for i, s := range way {
		if s.Proof != nil && count(s.part.Sights, *s.Proof, true) > 0 {
			last = i
		}
	}
	r.LastSeen = "nowhere"
	if last >= 0 {
		r.LastSeen = fmt.Sprintf("on %s, %s", way[last].on, way[last].place())
	}
	for _, s := range way {
		if s.Narrow {
			r.Cause, r.Remedy, r.On = s.Text, s.Remedy, s.on
			return
		}
	}
	r.On = r.From
	r.Cause = cmp.Or(r.Sent.Problem, fmt.Sprintf("the path loses packets of %d bytes, but not smaller ones", r.Sent.Size))
	r.Remedy = fmt.Sprintf("twill ping %s", r.Packet.To)
}
