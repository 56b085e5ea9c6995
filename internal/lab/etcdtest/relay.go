package etcdtest

import (
	"bytes"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Relay sits between clients and a server, and can be cut: it then passes
// nothing on and closes nothing, like an unplugged wire. It can also be set to cut
// itself at a moment that timing could not hit, such as between a request and its
// answer.
//
// Its methods may be called from several goroutines.
type Relay struct {
	// Endpoint is the URL for clients, plain HTTP.
	Endpoint string

	listener net.Listener
	dial     func() (net.Conn, error)

	mu     sync.Mutex
	open   [2]chan struct{}       // of each direction; closed while data may pass
	moment *moment                // nil: none is waited for
	held   map[chan struct{}]bool // a channel for everything that a client has sent but the server has not received; closed once it has
	conns  map[net.Conn]bool
	closed bool
}

// direction is the direction of data through a relay.
type direction int

const (
	requests direction = iota
	answers
)

// moment defines when a relay cuts itself.
type moment struct {
	text    []byte // sent by a client at that moment
	passes  bool   // the text is delivered, but answers to it are not
	reached chan struct{}
}

// NewRelay creates a relay to the server at endpoint. It is closed when the test ends.
func NewRelay(t testing.TB, endpoint string) *Relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target := strings.TrimPrefix(endpoint, "http://")
	return NewRelayOn(t, l, func() (net.Conn, error) { return net.Dial("tcp", target) })
}

// NewRelayOn creates a relay from the clients of l to the destination of dial, both of
// which may be in a network namespace. It closes l when the test ends.
func NewRelayOn(t testing.TB, l net.Listener, dial func() (net.Conn, error)) *Relay {
	r := &Relay{
		Endpoint: "http://" + l.Addr().String(),
		listener: l,
		dial:     dial,
		held:     make(map[chan struct{}]bool),
		conns:    make(map[net.Conn]bool),
	}
	for d := range r.open {
		r.open[d] = make(chan struct{})
		close(r.open[d])
	}
	go r.accept()
	t.Cleanup(r.close)
	return r
}

// Cut blocks all traffic from now on.
func (r *Relay) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut(requests)
	r.cut(answers)
}

// CutBefore cuts the relay when a client sends text, before the server receives it.
// The returned channel is closed at that moment.
func (r *Relay) CutBefore(text string) <-chan struct{} {
	return r.cutAt(moment{text: []byte(text)})
}

// CutAfter delivers client data that contains text to the server, and blocks
// the answers. The returned channel is closed once the data has been sent, which may be
// before the server has acted on it.
func (r *Relay) CutAfter(text string) <-chan struct{} {
	return r.cutAt(moment{text: []byte(text), passes: true})
}

func (r *Relay) cutAt(m moment) <-chan struct{} {
	m.reached = make(chan struct{})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.moment = &m
	return m.reached
}

// Heal ends a cut and delivers what was blocked.
func (r *Relay) Heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heal(requests)
	r.heal(answers)
}

// Deliver delivers to the server what clients have sent and continue to send, while
// the answers stay blocked until Heal. It returns when the server's end of the
// connection has received what was blocked.
func (r *Relay) Deliver() {
	r.mu.Lock()
	r.heal(requests)
	held := slices.Collect(maps.Keys(r.held))
	r.mu.Unlock()
	for _, delivered := range held {
		<-delivered
	}
}

// Break closes all connections, on both sides, and discards what was blocked.
// New connections follow the state set by Cut and Heal.
func (r *Relay) Break() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		c.Close()
	}
}

// cut and heal require r.mu.
func (r *Relay) cut(d direction) {
	if r.isOpen(d) {
		r.open[d] = make(chan struct{})
	}
}

func (r *Relay) heal(d direction) {
	if !r.isOpen(d) {
		close(r.open[d])
	}
}

func (r *Relay) isOpen(d direction) bool {
	select {
	case <-r.open[d]:
		return true
	default:
		return false
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
	r.heal(requests)
	r.heal(answers)
}

// hold registers c to be closed with the relay.
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

// look searches p for the text of the moment, which may begin at the end of before,
// and cuts the relay if it finds the text. If the text has to be delivered, look returns
// the channel to close afterwards.
func (r *Relay) look(before, p []byte) (reached chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.moment
	if m == nil {
		return nil
	}
	half := before[max(0, len(before)-len(m.text)+1):] // a complete text in before was sent long ago
	if !bytes.Contains(slices.Concat(half, p), m.text) {
		return nil
	}
	r.moment = nil
	r.cut(answers)
	if m.passes {
		return m.reached
	}
	r.cut(requests)
	close(m.reached)
	return nil
}

// wait returns when data may pass in a direction.
func (r *Relay) wait(d direction) {
	r.mu.Lock()
	open := r.open[d]
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
	r.wait(answers)
	far, err := r.dial()
	if err != nil || !r.hold(far) {
		return
	}
	defer r.drop(far)
	done := make(chan struct{}, 2)
	go func() {
		_, _ = io.Copy(&toServer{relay: r, conn: far}, near)
		done <- struct{}{}
	}()
	go func() {
		_, _ = io.Copy(toClient{r, near}, far)
		done <- struct{}{}
	}()
	<-done
	// The end of a connection has to be passed on, too.
	r.wait(requests)
	r.wait(answers)
}

// toServer is a Writer that waits until the relay passes requests, and watches for
// the moment at which it no longer does.
type toServer struct {
	relay  *Relay
	conn   net.Conn
	before []byte // the end of what was written before
}

// longestText is the maximum length of the text of a moment.
const longestText = 256

func (w *toServer) Write(p []byte) (int, error) {
	r := w.relay
	reached := r.look(w.before, p)
	w.before = append(w.before, p...)
	w.before = append(w.before[:0], w.before[max(0, len(w.before)-longestText):]...)

	delivered := make(chan struct{})
	r.mu.Lock()
	r.held[delivered] = true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.held, delivered)
		close(delivered)
	}()
	r.wait(requests)
	n, err := w.conn.Write(p)
	if reached != nil {
		close(reached)
	}
	return n, err
}

// toClient is a Writer that waits until the relay passes answers.
type toClient struct {
	relay *Relay
	conn  net.Conn
}

func (w toClient) Write(p []byte) (int, error) {
	w.relay.wait(answers)
	return w.conn.Write(p)
}
