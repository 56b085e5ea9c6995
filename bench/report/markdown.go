package report

import (
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// threeDigits prints a number with three significant digits, and all digits before
// the decimal point; whole numbers are printed in full.
func threeDigits(v float64) string {
	switch {
	case v >= 100 || v == math.Trunc(v):
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case v >= 0.01:
		return strconv.FormatFloat(v, 'f', 2, 64)
	default:
		return strconv.FormatFloat(v, 'g', 1, 64)
	}
}

// ratioDigits prints a ratio.
func ratioDigits(v float64) string { return strconv.FormatFloat(v, 'f', 2, 64) }

// writeTable writes rows, the first of which is the header, as a Markdown table that
// is also readable as plain text: the leading text columns, words of them, are
// left-aligned and the others right-aligned.
func writeTable(b *strings.Builder, words int, rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, s := range row {
			width[i] = max(width[i], utf8.RuneCountInString(s))
		}
	}
	for n, row := range rows {
		for i, s := range row {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(s))
			if i < words {
				s += pad
			} else {
				s = pad + s
			}
			b.WriteString("| " + s + " ")
		}
		b.WriteString("|\n")
		if n > 0 {
			continue
		}
		for i := range row {
			line := strings.Repeat("-", width[i]+1)
			if i < words {
				b.WriteString("|" + line + "-")
			} else {
				b.WriteString("|" + line + ":")
			}
		}
		b.WriteString("|\n")
	}
}

// oneLine makes text fit a cell or a line.
func oneLine(s string) string {
	const longest = 160 // runes
	s = strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "|", "\\|")
	if r := []rune(s); len(r) > longest {
		return string(r[:longest]) + "…"
	}
	return s
}
