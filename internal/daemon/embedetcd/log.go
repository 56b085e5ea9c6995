//go:build !noembed

package embedetcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/twillnet/twill/internal/logging"
)

// core is etcd's log. It passes warnings and errors on to the daemon's log: at debug
// level while etcd starts, when warnings are about the daemon's configuration of etcd,
// and while it stops, when it warns about every closed connection. A failure to start
// becomes the error of Start, by explain.
type core struct {
	*journal
	fields []zapcore.Field
}

// journal is the state shared by all cores of one etcd.
type journal struct {
	log *slog.Logger

	mu    sync.Mutex
	phase phase
	last  string // the last error while it was starting

	// dead is closed when the etcd cannot continue; the fields below may be read
	// after that.
	dead  chan struct{}
	why   string
	cause error // nil if etcd reported none
}

// phase is a phase in the life of an etcd.
type phase int

const (
	starting phase = iota
	running
	ending
)

func newCore(log *slog.Logger) *core {
	return &core{journal: &journal{log: log, dead: make(chan struct{})}}
}

func (c *core) logger() *zap.Logger {
	hook := onFatal{c.journal}
	return zap.New(c, zap.WithFatalHook(hook), zap.WithPanicHook(hook))
}

// enter begins phase p.
func (j *journal) enter(p phase) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.phase = p
}

// is reports whether the etcd is in phase p.
func (j *journal) is(p phase) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.phase == p
}

// explain adds etcd's last logged error to err.
func (j *journal) explain(err error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case strings.Contains(err.Error(), j.last):
		return err
	case strings.Contains(j.last, err.Error()):
		return errors.New(j.last)
	}
	return fmt.Errorf("%w: %s", err, j.last)
}

// Enabled implements zapcore.Core.
func (c *core) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

// With implements zapcore.Core.
func (c *core) With(f []zapcore.Field) zapcore.Core {
	return &core{c.journal, slices.Concat(c.fields, f)}
}

// Check implements zapcore.Core.
func (c *core) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return checked.AddCore(e, c)
	}
	return checked
}

// Write implements zapcore.Core.
func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	text := render(e.Message, slices.Concat(c.fields, fields))
	level := slog.LevelWarn
	if e.Level >= zapcore.ErrorLevel {
		level = slog.LevelError
	}
	c.mu.Lock()
	now := c.phase
	if now == starting && level == slog.LevelError {
		c.last = text
	}
	c.mu.Unlock()
	if now != running {
		level = slog.LevelDebug
	}
	c.log.Log(context.Background(), level, "embedded etcd", logging.KeyWhy, text)
	return nil
}

// Sync implements zapcore.Core.
func (c *core) Sync() error { return nil }

// render writes the fields after the message, except those with long values
// that help only etcd's own developers.
func render(message string, fields []zapcore.Field) string {
	m := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(m)
	}
	var list []string
	for k, v := range m.Fields {
		if !strings.Contains(k, "stack") && !strings.HasSuffix(k, "Verbose") {
			list = append(list, fmt.Sprintf("%s: %v", k, v))
		}
	}
	if len(list) == 0 {
		return message
	}
	slices.Sort(list)
	return message + " (" + strings.Join(list, ", ") + ")"
}

// onFatal is the hook for a message after which etcd cannot continue.
type onFatal struct{ *journal }

// OnWrite implements zapcore.CheckWriteHook. The failed goroutine blocks here
// and keeps its locks, so that nothing is written after the failed write, while
// the daemon shuts down in order.
func (f onFatal) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	f.mu.Lock()
	if f.why == "" { // later failures are consequences of the first
		f.why = render(e.Message, fields)
		for _, field := range fields {
			if err, ok := field.Interface.(error); ok {
				f.cause = err
			}
		}
		close(f.dead)
	}
	f.mu.Unlock()
	select {}
}
