package logging

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Level is a log level that can be changed for a while. It is safe for concurrent use.
type Level struct {
	configured slog.Level
	current    atomic.Int64

	mu    sync.Mutex
	timer *time.Timer // ends the change that is in force; nil if there is none
}

// NewLevel returns a Level that is configured until it is changed.
func NewLevel(configured slog.Level) *Level {
	l := &Level{configured: configured}
	l.current.Store(int64(configured))
	return l
}

// Level implements [slog.Leveler].
func (l *Level) Level() slog.Level { return slog.Level(l.current.Load()) }

// Change sets the level for a time, after which the configured level is in force
// again. It replaces an earlier change. With 0 the configured level is in force at once.
func (l *Level) Change(to slog.Level, during time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	if during <= 0 {
		l.current.Store(int64(l.configured))
		return
	}
	l.current.Store(int64(to))
	var t *time.Timer
	t = time.AfterFunc(during, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.timer == t { // not replaced since
			l.timer = nil
			l.current.Store(int64(l.configured))
		}
	})
	l.timer = t
}
