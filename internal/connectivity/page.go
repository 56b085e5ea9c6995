package connectivity

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/internal/textpage"
)

const (
	// mostWords and mostMarks are the numbers of nodes up to which the matrix has room for
	// words, and for single characters, in 80 columns.
	mostWords = 12
	mostMarks = 56
	// mostLines bounds the lines about ways and differences; --json has all of them.
	mostLines = 50
	// leastIndent is that of the second and further lines of an item.
	leastIndent = 4
)

// WritePage writes the report for people.
func (r *Report) WritePage(w io.Writer) error {
	var p page
	p.summary(r)
	p.matrix(r)
	p.ways(r)
	p.problems(r)
	p.list("differences between the nodes:", texts(r.Differences))
	p.findings(r)
	_, err := io.WriteString(w, p.String())
	return err
}

type page struct{ textpage.Page }

// item is one entry of a list: a text after head, wrapped. A command that is meant to be
// copied is in head, with no text.
type item struct{ head, text string }

// texts returns items of texts alone.
func texts(all []string) (items []item) {
	for _, t := range all {
		items = append(items, item{"  ", t})
	}
	return items
}

// list writes items under a heading, after an empty line.
func (p *page) list(heading string, lines []item) {
	if len(lines) == 0 {
		return
	}
	p.Line("")
	p.Line("%s", heading)
	for i, l := range lines {
		if i == mostLines {
			p.Line("  and %d more, which --json has", len(lines)-i)
			break
		}
		if l.text == "" {
			p.Line("%s", l.head)
			continue
		}
		p.Text(max(utf8.RuneCountInString(l.head), leastIndent), l.head, l.text)
	}
}

func (p *page) summary(r *Report) {
	tried, passed, asked := 0, 0, 0
	for i := range r.Results {
		for _, o := range r.Results[i].Tests {
			if !o.Skipped {
				tried++
			}
			if o.OK {
				passed++
			}
		}
	}
	for i := range r.Nodes {
		if r.Nodes[i].Asked {
			asked++
		}
	}
	p.Line("%d nodes, tested from %d of them, %d paths: %d of %d tests passed", len(r.Nodes), asked, len(r.Results), passed, tried)
}

// matrix has a cell for each pair of nodes, in which stands what fails first.
func (p *page) matrix(r *Report) {
	cells := make(map[[2]netip.Addr]string)
	for i := range r.Results {
		one := &r.Results[i]
		pair := [2]netip.Addr{one.From, one.To}
		cells[pair] = worse(cells[pair], one.verdict())
	}
	p.Line("")
	if len(r.Nodes) > mostMarks {
		p.Line("The matrix would be too wide; --json has it.")
		return
	}
	width, cell := 5, func(verdict string) string { return verdict }
	if len(r.Nodes) > mostWords {
		width, cell = 1, mark
		p.Line("ok: .   down: X   ping: P   mtu: M   tcp: T   udp: U   not tested: ?")
		p.Line("")
	}
	head := fmt.Sprintf("%-20s", "FROM \\ TO")
	for i := range r.Nodes {
		head += fmt.Sprintf("%*s", width, column(i, width))
	}
	p.Line("%s", head)
	for i, from := range r.Nodes {
		line := fmt.Sprintf("%2d %-17s", i+1, cut(from.Node.String(), 17))
		for j, to := range r.Nodes {
			verdict := cells[[2]netip.Addr{from.Node, to.Node}]
			if i == j {
				verdict = "-"
			}
			line += fmt.Sprintf("%*s", width, cell(cmp.Or(verdict, "?")))
		}
		p.Line("%s", line)
	}
}

// column returns the heading of a column: its number, or the last digit of that.
func column(i, width int) string {
	text := fmt.Sprint(i + 1)
	return text[max(len(text)-width, 0):]
}

// verdicts are the words of the matrix, from good to bad.
var verdicts = []string{"", "ok", testUDP, testTCP, testMTU, testPing, "down"}

func worse(a, b string) string {
	if slices.Index(verdicts, b) > slices.Index(verdicts, a) {
		return b
	}
	return a
}

// mark returns the character that stands for a verdict.
func mark(verdict string) string {
	switch verdict {
	case "ok":
		return "."
	case "down":
		return "X"
	}
	return strings.ToUpper(verdict[:1])
}

// verdict returns the first test that has failed, "down" if none of several has passed,
// or "ok".
func (r *Result) verdict() string {
	failed, passed, first := 0, 0, ""
	for _, o := range r.Tests {
		switch {
		case o.OK:
			passed++
		case o.Failed():
			failed++
			first = cmp.Or(first, o.Test)
		}
	}
	switch {
	case failed == 0:
		return "ok"
	case passed == 0:
		return "down"
	}
	return first
}

// ways describes the ways on which something has failed.
func (p *page) ways(r *Report) {
	var lines []item
	for i := range r.Results {
		one := &r.Results[i]
		if !one.Failed() {
			continue
		}
		lines = append(lines, item{"  ", fmt.Sprintf("%s -> %s, %s over %s", one.From, one.To, one.family(), cmp.Or(one.Backend, "no backend"))})
		for _, o := range one.Tests {
			if o.Failed() {
				lines = append(lines, item{fmt.Sprintf("    %-4s  ", o.Test), o.Detail})
			}
		}
	}
	p.list("failed:", lines)
}

// problems lists the nodes whose part has not done its work.
func (p *page) problems(r *Report) {
	var lines []string
	for i := range r.Nodes {
		if n := &r.Nodes[i]; n.Problem != "" {
			lines = append(lines, fmt.Sprintf("%s: %s", n.Node, n.Problem))
		}
	}
	p.list("could not test from:", texts(lines))
}

// findings lists what doctor has found, each once for all nodes that have it.
func (p *page) findings(r *Report) {
	nodes := make(map[doctor.Finding][]netip.Addr)
	var order []doctor.Finding
	widest := 0
	for _, n := range r.Nodes {
		for _, f := range n.Findings {
			widest = max(widest, len(f.Check))
			if nodes[f] == nil {
				order = append(order, f)
			}
			nodes[f] = append(nodes[f], n.Node)
		}
	}
	slices.SortStableFunc(order, func(a, b doctor.Finding) int { return cmp.Compare(a.Level, b.Level) }) // bad, warn
	var lines []item
	for _, f := range order {
		head := fmt.Sprintf("  %-4s  %-*s  ", f.Level, widest, f.Check)
		lines = append(lines, item{head, nodesText(nodes[f]) + ": " + f.Text})
		if f.Remedy != "" {
			lines = append(lines, item{head: strings.Repeat(" ", len(head)) + "→ " + f.Remedy})
		}
	}
	p.list("doctor finds:", lines)
}

// cut shortens text to n columns. All text is ASCII.
func cut(text string, n int) string {
	if len(text) <= n {
		return text
	}
	return text[:n-1] + "~"
}
