// Package httplimit makes HTTP servers whose use of resources untrusted clients cannot
// grow without bound: it limits the connections, the memory that each may hold, how
// long one may be idle or be written to, and the log lines that it causes.
package httplimit

import (
	"log"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/twillnet/twill/internal/logging"
)

const (
	readTimeout  = 5 * time.Second  // for a request
	writeTimeout = 10 * time.Second // from the end of a request to the end of its answer
	idleTimeout  = 30 * time.Second // between two requests of a connection
	maxHeader    = 8 << 10          // bytes of a request's header
)

// Server returns a server for handler, which needs no request bodies. Its errors,
// such as running out of file descriptors, are logged at most once per logInterval.
func Server(handler http.Handler, logger *slog.Logger) *http.Server {
	return &http.Server{
		Handler:        handler,
		ReadTimeout:    readTimeout,
		WriteTimeout:   writeTimeout,
		IdleTimeout:    idleTimeout,
		MaxHeaderBytes: maxHeader,
		ErrorLog:       log.New(&errorLog{log: logger}, "", 0),
	}
}

const logInterval = 30 * time.Second

// errorLog writes the log lines of net/http to a structured log, and drops those that
// follow within logInterval.
type errorLog struct {
	log  *slog.Logger
	mu   sync.Mutex
	last time.Time
}

// Write implements io.Writer.
func (e *errorLog) Write(line []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now := time.Now(); e.last.IsZero() || now.Sub(e.last) >= logInterval {
		e.last = now
		first, _, _ := strings.Cut(string(line), "\n")
		e.log.Warn("HTTP server error, further ones within 30 s are not logged", logging.KeyError, strings.TrimPrefix(first, "http: "))
	}
	return len(line), nil
}
