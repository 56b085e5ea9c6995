package report

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Markers around the figures on a page. Everything outside them is prose.
const (
	pageBegin = "<!-- figures: begin (written by twill-lab bench, do not edit) -->"
	pageEnd   = "<!-- figures: end -->"
)

// Markdown returns the whole report: the circumstances, the marks, the plots,
// and the tables of every wire. plots is the directory of the plots as used in
// links, without a trailing slash; if it is empty, the plots are left out.
func (r *Report) Markdown(plots string) string {
	var b strings.Builder
	r.writeHead(&b)
	b.WriteString("\n### Targets\n\n")
	r.writeMarks(&b)
	if n := r.finishedRounds(); n < marksRounds {
		fmt.Fprintf(&b, "\nThe marks are meant for medians of at least %d rounds; here there were %d.\n", marksRounds, n)
	}
	if plots != "" {
		for _, f := range r.charts() {
			fmt.Fprintf(&b, "\n### %s\n\n![%s](%s/%s.svg)\n", f.title, f.title, plots, f.name)
		}
	}
	for _, w := range r.Wires {
		fmt.Fprintf(&b, "\n### Wire %s: %s\n", w.Name, w.Title)
		w.writeTables(&b)
	}
	if len(r.Micro) > 0 {
		b.WriteString("\n### Go benchmarks\n\n")
		writeMicro(&b, r.Micro)
	}
	if failures := r.Failures(); len(failures) > 0 {
		b.WriteString("\n### Failures\n\n")
		for _, line := range failures {
			fmt.Fprintf(&b, "- %s\n", oneLine(line))
		}
	}
	return b.String()
}

// marksRounds is how many rounds the marks require.
const marksRounds = 5

// finishedRounds is the smallest number of finished rounds over all wires.
func (r *Report) finishedRounds() int {
	n := r.Rounds
	for _, w := range r.Wires {
		n = min(n, w.Rounds)
	}
	return n
}

// writeHead writes the circumstances.
func (r *Report) writeHead(b *strings.Builder) {
	rounds := fmt.Sprint(r.Rounds, " ")
	if r.Interrupted {
		rounds = "" // the wires differ, see below
	}
	fmt.Fprintf(b, "Medians of %sinterleaved rounds of %.2g s a run, in parentheses their minimum and maximum, "+
		"in brackets the ratio to kernel VXLAN: the median of the rounds' ratios. "+
		"For CPU time and latency a ratio below 1 is better. → is from pod a to pod b, ← the other way, ⇄ both at once. "+
		"CPU time is that of the whole machine, generator and kernel included. – was not measured.\n\n", rounds, r.Seconds)
	rows := [][]string{{"", ""},
		{"machine", r.Machine.String()},
		{"wire MTU", fmt.Sprint(r.MTU)},
		{"revision", "`" + r.Revision + "`, " + r.Go},
		{"command", "`" + strings.Join(r.Command, " ") + "`"},
		{"time", fmt.Sprintf("%s UTC, %v", r.Started.UTC().Format("2006-01-02 15:04"), r.Ended.Sub(r.Started).Round(time.Second))},
		{"load average", fmt.Sprintf("%.2f at the start, %.2f at the end (this run's own load)", r.Busy.LoadAtStart, r.Busy.LoadAtEnd)},
		{"CPU in use before", fmt.Sprintf("%.0f %%", r.Busy.UsedPercent)},
	}
	writeTable(b, 2, rows)
	if warning := r.Warning(); warning != "" {
		fmt.Fprintf(b, "\n**%s**\n", warning)
	}
	if r.Interrupted {
		b.WriteString("\n**Interrupted.** Finished rounds:")
		for i, w := range r.Wires {
			if i > 0 {
				b.WriteString(",")
			}
			fmt.Fprintf(b, " %d of %d on the %s wire", w.Rounds, r.Rounds, w.Name)
		}
		b.WriteString(".\n")
	}
}

// WriteFiles writes report.json, report.md and the plots to dir, and overwrites those
// of an earlier report.
func (r *Report) WriteFiles(dir string) error {
	if err := r.WriteJSON(filepath.Join(dir, "report.json")); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "report.md"), []byte(r.Markdown(".")), 0o644); err != nil {
		return err
	}
	for _, f := range r.charts() {
		if err := f.write(dir); err != nil {
			return fmt.Errorf("plot %s: %w", f.name, err)
		}
	}
	return nil
}

// UpdatePage replaces the text between the markers of a page with the report.
// The plots are in dir.
func (r *Report) UpdatePage(page, dir string) error {
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	before, rest, begun := strings.Cut(string(text), pageBegin)
	_, after, ended := strings.Cut(rest, pageEnd)
	if !begun || !ended {
		return fmt.Errorf("update %s: want a line %q, and a line %q after it", page, pageBegin, pageEnd)
	}
	links, err := relative(filepath.Dir(page), dir)
	if err != nil {
		return fmt.Errorf("update %s: %w", page, err)
	}
	figures := pageBegin + "\n\n" + r.Markdown(filepath.ToSlash(links)) + "\n" + pageEnd
	return os.WriteFile(page, []byte(before+figures+after), 0o644)
}

// relative is the relative path from one directory to another, either of which may be
// relative to the working directory.
func relative(from, to string) (string, error) {
	from, err := filepath.Abs(from)
	if err != nil {
		return "", err
	}
	if to, err = filepath.Abs(to); err != nil {
		return "", err
	}
	return filepath.Rel(from, to)
}
