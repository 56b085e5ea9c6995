package httpd

import (
	"bytes"
	"context"
	"net/http"
	"sync"
	"time"
)

// renderInterval is the minimum time between two renderings of a page. It
// bounds the CPU time that clients can make the daemon spend on them.
const renderInterval = 100 * time.Millisecond

// page serves the output of a handler. It is rendered at most once per renderInterval, for
// all requests received before that. A response is never older than its request.
type page struct {
	render http.Handler

	mu   sync.Mutex
	next *rendering // not begun yet; nil if none was requested
	last time.Time  // when the last one began
	work sync.Mutex // held while rendering
}

// rendering is the response to some requests. It is immutable once done is closed.
type rendering struct {
	done   chan struct{}
	status int
	header http.Header
	body   bytes.Buffer
}

// ServeHTTP implements http.Handler.
func (p *page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	answer := p.next
	if answer == nil {
		answer = &rendering{done: make(chan struct{}), status: http.StatusOK, header: make(http.Header)}
		p.next = answer
		time.AfterFunc(time.Until(p.last.Add(renderInterval)), func() { p.run(answer) })
	}
	p.mu.Unlock()
	select {
	case <-answer.done:
	case <-r.Context().Done():
		return
	}
	for key, values := range answer.header {
		w.Header()[key] = values
	}
	w.WriteHeader(answer.status)
	_, _ = w.Write(answer.body.Bytes()) // fails only if the client has gone
}

func (p *page) run(answer *rendering) {
	p.work.Lock()
	defer p.work.Unlock()
	p.mu.Lock()
	p.next, p.last = nil, time.Now()
	p.mu.Unlock()
	// Use a separate request, so that no client chooses format or compression.
	r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "/metrics", nil)
	if err == nil {
		p.render.ServeHTTP(answer, r)
	}
	close(answer.done)
}

// Header, Write and WriteHeader implement http.ResponseWriter.
func (a *rendering) Header() http.Header         { return a.header }
func (a *rendering) Write(b []byte) (int, error) { return a.body.Write(b) }
func (a *rendering) WriteHeader(status int)      { a.status = status }
