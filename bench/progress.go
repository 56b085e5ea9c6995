package bench

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// progress tells somebody who waits how far things are: on a terminal in one
// line that is rewritten, elsewhere in a line for each step.
type progress struct {
	w        io.Writer
	terminal bool
	total    int // steps
	done     int
	started  time.Time
}

func newProgress(w io.Writer, total int) *progress {
	return &progress{w: w, terminal: isTerminal(w), total: total, started: time.Now()}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// step says what begins now.
func (p *progress) step(what string) {
	line := fmt.Sprintf("[%d/%d] %s", p.done+1, p.total, what)
	if p.done > 0 {
		left := time.Since(p.started) / time.Duration(p.done) * time.Duration(p.total-p.done)
		line += fmt.Sprintf(", %d s left", int(left.Seconds()+0.5))
	}
	p.done++
	p.show(line)
}

// skip says that n steps will not come.
func (p *progress) skip(n int) { p.total -= n }

func (p *progress) show(line string) {
	if p.terminal {
		fmt.Fprintf(p.w, "\r\033[K%s", line)
	} else {
		fmt.Fprintln(p.w, line)
	}
}

// clear removes the line from a terminal.
func (p *progress) clear() {
	if p.terminal {
		fmt.Fprint(p.w, "\r\033[K")
	}
}
