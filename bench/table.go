package bench

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// WriteTable writes the medians as a Markdown table that also reads well as it
// is: a row for each load and metric, a column for each path, ratios to kernel
// VXLAN in brackets. Below it stand the conditions, and what failed.
func (r *Report) WriteTable(w io.Writer) error {
	head := []string{"", ""}
	var paths []Path
	for _, p := range r.Paths {
		if p.Error != "" {
			continue
		}
		if path, ok := find(Paths, p.Name, Path.name); ok {
			paths = append(paths, path)
			head = append(head, path.Title)
		}
	}
	rows := [][]string{head}
	for _, load := range r.loads() {
		title := load.Title
		for _, m := range load.Metrics {
			row := []string{title, m.Unit}
			for _, p := range paths {
				row = append(row, r.cell(p.Name, load.Name, m))
			}
			rows = append(rows, row)
			title = ""
		}
	}
	var b strings.Builder
	writeMarkdown(&b, rows)
	fmt.Fprintf(&b, "\n%s\n", r.conditions())
	for _, note := range r.notes() {
		fmt.Fprintf(&b, "%s\n", note)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// loads are those that were run.
func (r *Report) loads() []Load {
	var loads []Load
	for _, load := range Loads {
		for _, run := range r.Runs {
			if run.Load == load.Name {
				loads = append(loads, load)
				break
			}
		}
	}
	return loads
}

// cell is a figure and its ratio to the baseline's.
func (r *Report) cell(path, load string, m Metric) string {
	v, ok := r.Median(path, load, m.Key)
	if !ok {
		return "-"
	}
	s := threeDigits(v)
	if path == baseline || !m.Compare {
		return s
	}
	if ratio, ok := r.Ratio(path, baseline, load, m.Key); ok {
		s += " [" + strconv.FormatFloat(ratio, 'f', 2, 64) + "]"
	}
	return s
}

// conditions say how the figures came about.
func (r *Report) conditions() string {
	rounds := 0
	for _, run := range r.Runs {
		rounds = max(rounds, run.Round)
	}
	return fmt.Sprintf("Medians of %d interleaved rounds of %g s; in brackets the ratio to kernel VXLAN, round by round.\n"+
		"Wire: %s, MTU %d. Machine: %s.", rounds, r.Seconds, r.Wire, r.WireMTU, r.Machine)
}

// notes are what the table cannot tell.
func (r *Report) notes() []string {
	var notes []string
	for _, p := range r.Paths {
		if p.Error != "" {
			notes = append(notes, fmt.Sprintf("%s did not take part: %s", p.Name, p.Error))
		}
	}
	for _, run := range r.Runs {
		if run.Error != "" {
			notes = append(notes, fmt.Sprintf("%s on %s, round %d: %s", run.Load, run.Path, run.Round, run.Error))
		}
	}
	return notes
}

// threeDigits prints a number with three significant digits, and all of those
// before the point; a whole number as such.
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

// writeMarkdown writes rows, the first of them the head, with the columns
// aligned: words to the left, figures to the right.
func writeMarkdown(b *strings.Builder, rows [][]string) {
	const words = 2 // columns
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
