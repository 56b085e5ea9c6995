package daemon

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/twillnet/twill/internal/daemon/webui"
)

const (
	// examineEvery is the minimum time between two runs of twill doctor: it pings every
	// peer, and everyone who reaches the health port can request the page.
	examineEvery = time.Minute
	// examineWithin is how long a run may take.
	examineWithin = 50 * time.Second
)

// examiner runs twill doctor for the page of --ui, in a separate process: the code of the
// checks would enlarge a small daemon, and a failure in them does not affect it. It is
// safe for concurrent use.
type examiner struct {
	program func() (string, error) // path of twill
	args    []string
	ctx     context.Context // ends with the daemon

	mu      sync.Mutex
	started time.Time // of the last run
	last    *webui.Examination
}

// newExaminer returns an examiner of the daemon with this control socket. Its runs end when
// ctx is done.
func newExaminer(ctx context.Context, socket string) *examiner {
	return &examiner{program: besides, ctx: ctx, args: []string{"doctor", "--json", "--socket=" + socket}}
}

// besides returns the path of the twill that is installed beside this twilld.
func besides() (string, error) {
	if self, err := os.Executable(); err == nil {
		path := filepath.Join(filepath.Dir(self), "twill")
		if _, err := exec.LookPath(path); err == nil {
			return path, nil
		}
	}
	return exec.LookPath("twill")
}

// examination returns the latest result, or nil before the first, and starts the next run
// if it is due. It does not wait.
func (e *examiner) examination() *webui.Examination {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now := time.Now(); now.Sub(e.started) >= examineEvery && e.ctx.Err() == nil {
		e.started = now
		go func() {
			x := e.run()
			e.mu.Lock()
			defer e.mu.Unlock()
			e.last = x
		}()
	}
	return e.last
}

// run runs twill doctor.
func (e *examiner) run() *webui.Examination {
	ctx, cancel := context.WithTimeoutCause(e.ctx, examineWithin, fmt.Errorf("no result within %s", examineWithin))
	defer cancel()
	x := &webui.Examination{At: time.Now()}
	path, err := e.program()
	if err != nil {
		x.Problem = "twill is not installed next to twilld"
		return x
	}
	c := exec.CommandContext(ctx, path, e.args...)
	c.WaitDelay = time.Second
	var out bytes.Buffer
	c.Stdout = &out
	err = c.Run() // also fails if there are bad findings
	if parsed := json.Unmarshal(out.Bytes(), x); parsed != nil {
		x.Problem = fmt.Sprintf("twill doctor failed: %v", cmp.Or(context.Cause(ctx), err, parsed))
	}
	return x
}
