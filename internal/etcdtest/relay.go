package etcdtest

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// Relay stands between clients and a server, and can be cut: it then passes
// nothing on and closes nothing, as a wire would that is pulled out.
type Relay struct {
	// Endpoint is the URL for clients, plain HTTP.
	Endpoint string

	target   string // host:port
	listener net.Listener
	mu       sync.Mutex
	open     chan struct{} // closed while data may pass
	conns    map[net.Conn]bool
	closed   bool
}

// NewRelay makes a relay to the server at endpoint that goes with the test.
func NewRelay(t testing.TB, endpoint string) *Relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &Relay{
		Endpoint: "http://" + l.Addr().String(),
		target:   strings.TrimPrefix(endpoint, "http://"),
		listener: l,
		open:     make(chan struct{}),
		conns:    make(map[net.Conn]bool),
	}
	close(r.open)
	go r.accept()
	t.Cleanup(r.close)
	return r
}

// Cut stops all that passes from now on.
func (r *Relay) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open = make(chan struct{})
}

// Heal lets pass what Cut has stopped. It follows a Cut.
func (r *Relay) Heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.open)
}

// Break closes all connections, on both sides. New ones are as Cut and Heal have
// it.
func (r *Relay) Break() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		c.Close()
	}
}

func (r *Relay) close() {
	r.listener.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for c := range r.conns {
		c.Close()
	}
	select {
	case <-r.open:
	default:
		close(r.open)
	}
}

// hold keeps c to be closed with the relay.
func (r *Relay) hold(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		c.Close()
		return false
	}
	r.conns[c] = true
	return true
}

func (r *Relay) drop(c net.Conn) {
	c.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
}

// passable waits until data may pass.
func (r *Relay) passable() {
	r.mu.Lock()
	open := r.open
	r.mu.Unlock()
	<-open
}

func (r *Relay) accept() {
	for {
		near, err := r.listener.Accept()
		if err != nil {
			return
		}
		go r.serve(near)
	}
}

func (r *Relay) serve(near net.Conn) {
	if !r.hold(near) {
		return
	}
	defer r.drop(near)
	r.passable()
	far, err := net.Dial("tcp", r.target)
	if err != nil || !r.hold(far) {
		return
	}
	defer r.drop(far)
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
		go func() {
			_, _ = io.Copy(gate{r, way[0]}, way[1])
			done <- struct{}{}
		}()
	}
	<-done
}

// gate is a Writer that waits until the relay passes data.
type gate struct {
	relay *Relay
	net.Conn
}

func (g gate) Write(p []byte) (int, error) {
	g.relay.passable()
	return g.Conn.Write(p)
}
