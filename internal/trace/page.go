package trace

import (
	"fmt"
	"io"
	"net/netip"

	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/internal/textpage"
)

// textColumn is where the text of a step begins.
const textColumn = 24

// WritePage writes the report for people.
func (r *Report) WritePage(w io.Writer) error {
	var p page
	to := "no node"
	if r.To.IsValid() {
		to = r.To.String()
	}
	p.Text(0, "", fmt.Sprintf("%s: node %s to %s", &r.Packet, r.From, to))
	p.Line("")
	p.Line("SEEN  STEP       LEVEL  WHAT")
	p.steps(r.From, r.Sender.Steps, r)
	switch {
	case r.Receiver != nil:
		p.steps(r.To, r.Receiver.Steps, r)
	case r.Missing != "":
		p.Line("on %s", to)
		p.Text(textColumn, "  ", "not examined: "+r.Missing)
	}
	p.steps(r.From, r.Sender.Back, r)
	p.Line("")
	p.Text(0, "", r.Sent.String())
	p.rose(r.From, r.Sender.Rose)
	if r.Receiver != nil {
		p.rose(r.To, r.Receiver.Rose)
	}
	p.verdict(r)
	_, err := io.WriteString(w, p.String())
	return err
}

type page struct{ textpage.Page }

func (p *page) steps(on netip.Addr, steps []Step, r *Report) {
	if len(steps) == 0 {
		return
	}
	p.Line("on %s", on)
	before := ""
	for _, s := range steps {
		seen, name := "", s.Name
		if s.Proof != nil {
			seen = fmt.Sprintf("%d/%d", s.Seen, r.Sent.Small)
		}
		if name == before && s.Proof == nil {
			name = ""
		}
		before = s.Name
		head := fmt.Sprintf("%-5s %-10s %-6s ", seen, name, s.Level)
		p.Text(textColumn, head, s.Text)
		if s.Remedy != "" && s.Level != doctor.OK {
			p.Line("%*s→ %s", textColumn, "", s.Remedy)
		}
	}
}

// String describes how the probes were sent.
func (s Sent) String() string {
	text := fmt.Sprintf("%d small probes", s.Small)
	if s.Full > 0 {
		text += fmt.Sprintf(" and %d of %d bytes", s.Full, s.Size)
	}
	if s.InPod {
		text += ", sent in the pod's network namespace"
	} else {
		text += ", sent by the node itself"
	}
	if s.Problem != "" {
		text += "; " + s.Problem
	}
	return text
}

func (p *page) rose(on netip.Addr, counters []Counter) {
	for _, c := range counters {
		p.Text(4, "  ", fmt.Sprintf("meanwhile on %s: %s", on, c.sentence()))
	}
}

func (p *page) verdict(r *Report) {
	if r.OK {
		text := fmt.Sprintf("ok: %d of %d small probes answered", r.Answered[0], r.Sent.Small)
		if r.Answered[0] == 0 {
			text = fmt.Sprintf("ok: delivered to %s, which need not answer", r.Packet.To)
		}
		if r.Sent.Full > 0 && r.Answered[0] > 0 {
			text += fmt.Sprintf(", %d of %d of %d bytes", r.Answered[1], r.Sent.Full, r.Sent.Size)
		}
		p.Text(0, "", text)
		return
	}
	p.Text(11, "last seen: ", r.LastSeen)
	p.Text(11, "cause:     ", r.Cause)
	if r.Remedy != "" {
		p.Line("remedy:    on %s", r.On)
		p.Line("           → %s", r.Remedy)
	}
}
