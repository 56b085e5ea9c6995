package report

import (
	"fmt"
	"io"
	"strings"
)

// compared are the metrics of a comparison between two revisions.
var compared = []Metric{Throughput, CPUPerGB, PacketRate, CPUPerMillion, ConnectionRate, HalfRTT50, HalfRTT99, PeakRSS}

// WriteComparison writes how path twill compares with path Base: a row for each
// figure that both have, with the median of the ratio over the rounds and its spread.
// A spread that includes 1 shows no difference.
func (r *Report) WriteComparison(out io.Writer) error {
	rows := [][]string{{"figure", "wire", "base", "now", "now / base", "spread"}}
	for _, w := range r.Wires {
		for _, load := range r.Loads {
			for _, m := range compared {
				ratio, ok := w.Ratio("twill", Base, load.Name, m)
				if !ok {
					continue
				}
				base, _ := w.Figure(Base, load.Name, m)
				now, _ := w.Figure("twill", load.Name, m)
				rows = append(rows, []string{
					load.Name + ", " + m.Unit, w.Name, threeDigits(base.Median), threeDigits(now.Median),
					ratioDigits(ratio.Median), ratioDigits(ratio.Min) + "–" + ratioDigits(ratio.Max),
				})
			}
		}
	}
	var b strings.Builder
	writeTable(&b, 2, rows)
	fmt.Fprintf(&b, "\nMedians of %d interleaved rounds of %g s; ratios are taken round by round.\n%s.\n", r.finishedRounds(), r.Seconds, r.Machine)
	if warning := r.Warning(); warning != "" {
		fmt.Fprintln(&b, warning)
	}
	for _, line := range r.Failures() {
		fmt.Fprintln(&b, line)
	}
	_, err := io.WriteString(out, b.String())
	return err
}
