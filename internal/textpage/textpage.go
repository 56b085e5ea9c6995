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
