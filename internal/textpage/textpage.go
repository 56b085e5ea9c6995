// Package textpage lays out what commands print for people: lines, wrapped texts and
// tables that fit a terminal of 80 columns. It does no I/O.
package textpage

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Width is the number of columns of a page. Only a word that is longer, and a line written
// with Line, such as a command that is meant to be copied, exceed it.
const Width = 80

// Page collects lines. What other nodes say cannot control the terminal: control
// characters become question marks. The zero value is an empty page.
type Page struct{ b strings.Builder }

// String returns the page.
func (p *Page) String() string { return p.b.String() }

// Line writes one line, of any length, without spaces at its end.
func (p *Page) Line(format string, args ...any) {
	line := strings.Map(func(c rune) rune {
		if unicode.IsControl(c) {
			return '?'
		}
		return c
	}, fmt.Sprintf(format, args...))
	p.b.WriteString(strings.TrimRight(line, " ") + "\n")
}

// Text writes a text after head, in lines of at most Width columns. All lines but the
// first are indented by indent columns.
func (p *Page) Text(indent int, head, text string) {
	line, words := head, 0
	for word := range strings.SplitSeq(strings.ReplaceAll(text, "\n", "; "), " ") {
		if words > 0 && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > Width {
			p.Line("%s", line)
			line, words = strings.Repeat(" ", indent), 0
		}
		if words++; words > 1 {
			line += " "
		}
		line += word
	}
	p.Line("%s", line)
}

// Texts writes a table whose last column is wrapped. The others are as wide as their widest
// cells.
func (p *Page) Texts(rows [][]string) {
	widths := columnWidths(rows)
	for _, row := range rows {
		last := len(row) - 1
		head := cells(row[:last], widths)
		p.Text(utf8.RuneCountInString(head), head, row[last])
	}
}

// Rows writes a table. If it is wider than the page, each of its rows takes several lines,
// and those after the first are indented; a line begins only at one of the columns in
// starts, and a column that is wider than the page is wrapped if it has a line of its own.
// All rows have the same number of cells.
func (p *Page) Rows(rows [][]string, starts ...int) {
	widths := columnWidths(rows)
	lines := fold(widths, starts)
	for _, row := range rows {
		for i, from := range lines {
			to := len(row)
			if i+1 < len(lines) {
				to = lines[i+1]
			}
			indent := ""
			if i > 0 {
				indent = continued
			}
			if to-from == 1 {
				p.Text(len(continued), indent, row[from])
				continue
			}
			p.Line("%s", indent+cells(row[from:to], widths[from:to]))
		}
	}
}

// continued is the indentation of the second and further lines of a row.
const continued = "  "

// gap is the number of columns between two cells.
const gap = 2

// fold returns the columns at which the lines of a row begin.
func fold(widths, starts []int) []int {
	lines, used, from := []int{0}, 0, 0
	for _, to := range append(starts, len(widths)) {
		group := 0
		for _, w := range widths[from:to] {
			group += w + gap
		}
		if from > 0 && used+group-gap > Width {
			lines, used = append(lines, from), len(continued)
		}
		used, from = used+group, to
	}
	return lines
}

func columnWidths(rows [][]string) (widths []int) {
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	return widths
}

// cells returns a line of cells with a gap after each.
func cells(row []string, widths []int) string {
	var b strings.Builder
	for i, cell := range row {
		fmt.Fprintf(&b, "%-*s", widths[i]+gap, cell)
	}
	return b.String()
}
