// Testreport reads "go test -json" on standard input and prints the parts that matter
// to a reader: the output of tests that failed, the tests that were skipped and
// why, go test's line for each package, and one line of totals.
//
// A skipped test is a hole in what the suite proves, so it makes testreport
// fail unless -skips is given. Whether a test failed is reported by go test's exit
// code: run the pipe with pipefail.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

func main() {
	each := flag.Bool("each", false, "also name each top-level test that passed")
	skips := flag.Bool("skips", false, "allow skipped tests, and only count them")
	flag.Parse()

	r := newReport(os.Stdout)
	r.each, r.skips = *each, *skips
	if err := r.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "testreport: read standard input:", err)
		os.Exit(1)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	if r.skipped > 0 && !*skips {
		fmt.Fprintln(os.Stderr, "testreport: tests were skipped; give them what they need, or remove them")
		os.Exit(1)
	}
}

// event is a line of "go test -json"; see "go doc test2json" and, for the
// build-* actions, "go help buildjson".
type event struct {
	Time    time.Time
	Action  string
	Package string
	Test    string // empty: about the package
	Output  string
}

type testID struct{ pkg, test string }

// report follows the events; it holds the output of tests that have not ended.
type report struct {
	w      io.Writer
	each   bool
	skips  bool // skips are expected, and not listed
	output map[testID]*strings.Builder
	// started is when each test began or, if it is parallel, when its turn
	// came. Go's own Elapsed leaves out the subtests that ran in parallel.
	started map[testID]time.Time

	passed, failed, skipped int // tests and subtests
}

func newReport(w io.Writer) *report {
	return &report{w: w, output: map[testID]*strings.Builder{}, started: map[testID]time.Time{}}
}

func (r *report) read(in io.Reader) error {
	br := bufio.NewReader(in)
	for {
		line, err := br.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil {
				fmt.Fprint(r.w, line) // output of another tool in the pipe, not JSON
			} else {
				r.take(e)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *report) take(e event) {
	id := testID{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.w, e.Output)
	case "run", "cont":
		r.started[id] = e.Time
	case "output":
		if e.Test == "" {
			r.packageOutput(e.Output)
			return
		}
		b := r.output[id]
		if b == nil {
			b = new(strings.Builder)
			r.output[id] = b
		}
		b.WriteString(e.Output)
	case "pass":
		if e.Test == "" {
			return
		}
		r.passed++
		delete(r.output, id)
		if r.each && !strings.Contains(e.Test, "/") {
			fmt.Fprintf(r.w, "%6.2fs %s\n", e.Time.Sub(r.started[id]).Seconds(), e.Test)
		}
	case "skip":
		if e.Test == "" {
			return // a package without tests
		}
		r.skipped++
		if r.skips {
			delete(r.output, id)
			return
		}
		fmt.Fprintf(r.w, "skipped: %s %s\n", e.Package, e.Test)
		r.flush(id)
	case "fail":
		if e.Test != "" {
			r.failed++
			r.flush(id)
			return
		}
		// Tests that were cut off by a panic or the timeout have no event of
		// their own.
		for open := range r.output {
			if open.pkg == e.Package {
				r.failed++
				r.flush(open)
			}
		}
	}
}

// packageOutput passes on the output of TestMain and go test's own line.
func (r *report) packageOutput(s string) {
	if s == "PASS\n" || strings.HasSuffix(s, "[no test files]\n") {
		return
	}
	fmt.Fprint(r.w, s)
}

func (r *report) flush(id testID) {
	if b := r.output[id]; b != nil {
		for line := range strings.Lines(b.String()) {
			if !strings.HasPrefix(line, "=== ") {
				fmt.Fprint(r.w, line)
			}
		}
		delete(r.output, id)
	}
}
