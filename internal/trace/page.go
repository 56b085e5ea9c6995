package trace

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/twillnet/twill/internal/doctor"
)

const (
	// pageWidth is the number of columns of the page, commands excepted, which are meant
	// to be copied.
	pageWidth = 80
	// textColumn is where the text of a step begins.
	textColumn = 24
)

// WritePage writes the report for people.
func (r *Report) WritePage(w io.Writer) error {
	var p page
	to := "no node"
	if r.To.IsValid() {
		to = r.To.String()
	}
	p.text(0, "", fmt.Sprintf("%s: node %s to %s", &r.Packet, r.From, to))
	p.line("")
	p.line("SEEN  STEP       LEVEL  WHAT")
	p.steps(r.From, r.Sender.Steps, r)
	switch {
	case r.Receiver != nil:
		p.steps(r.To, r.Receiver.Steps, r)
	case r.Missing != "":
		p.line("on %s", to)
		p.text(textColumn, "  ", "not asked: "+r.Missing)
	}
	p.steps(r.From, r.Sender.Back, r)
	p.line("")
	p.text(0, "", r.Sent.String())
	p.rose(r.From, r.Sender.Rose)
	if r.Receiver != nil {
		p.rose(r.To, r.Receiver.Rose)
	}
	p.verdict(r)
	_, err := io.WriteString(w, p.b.String())
	return err
}

// page collects lines. What the other node says cannot control the terminal.
type page struct{ b strings.Builder }

func (p *page) line(format string, args ...any) {
	line := strings.Map(func(c rune) rune {
		if unicode.IsControl(c) {
			return '?'
		}
		return c
	}, fmt.Sprintf(format, args...))
	p.b.WriteString(strings.TrimRight(line, " ") + "\n")
}

// text writes a text after head, in lines of the width of the page. All lines but the
// first are indented by indent columns.
func (p *page) text(indent int, head, text string) {
	line, words := head, 0
	for word := range strings.SplitSeq(text, " ") {
		if words > 0 && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > pageWidth {
			p.line("%s", line)
			line, words = strings.Repeat(" ", indent), 0
		}
		if words++; words > 1 {
			line += " "
		}
		line += word
	}
	p.line("%s", line)
}

func (p *page) steps(on netip.Addr, steps []Step, r *Report) {
	if len(steps) == 0 {
		return
	}
	p.line("on %s", on)
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
		p.text(textColumn, head, s.Text)
		if s.Remedy != "" && s.Level != doctor.OK {
			p.line("%*s→ %s", textColumn, "", s.Remedy)
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
		p.text(4, "  ", fmt.Sprintf("meanwhile on %s: %s", on, c.sentence()))
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
		p.text(0, "", text)
		return
	}
	p.text(11, "last seen: ", r.LastSeen)
	p.text(11, "cause:     ", r.Cause)
	if r.Remedy != "" {
		p.line("remedy:    on %s", r.On)
		p.line("           → %s", r.Remedy)
	}
}
