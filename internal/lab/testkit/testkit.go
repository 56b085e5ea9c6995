// Package testkit holds what the tests of every package share: waiting for a
// condition or a value, failing on errors, a log that a test can read, and the
// virtual clock of testing/synctest.
//
// No test sleeps or asserts how long something took: the outcome must not depend on how
// fast a machine is or in which order it schedules. A test waits for the effect itself,
// and only something that never happens reaches Patience. Code that depends on a clock
// runs in a synctest bubble, whose clock Advance moves.
package testkit

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Patience is how long a test waits for something that should happen within
// milliseconds before it reports a hang. It is far more than any machine needs,
// however busy.
const Patience = 2 * time.Minute

// interval is the pause between two checks of a condition.
const interval = 2 * time.Millisecond

// standstill is more than a check takes on a busy machine, and much less than Patience.
const standstill = 10 * time.Second

// Eventually polls until holds returns true. After Patience it fails the test
// with a description of what did not happen, followed by the result of each state
// function.
func Eventually(t testing.TB, what string, holds func() bool, state ...func() string) {
	t.Helper()
	if Within(Patience, holds) {
		return
	}
	fail(t, what, state)
}

// fail fails the test because something did not happen within Patience.
func fail(t testing.TB, what string, state []func() string) {
	t.Helper()
	for _, s := range state {
		what += "\n" + s()
	}
	t.Fatalf("not within %s: %s", Patience, what)
}

// Within polls until holds returns true, for at most d, and reports whether it
// did. It checks at least once, and again after d. Of the time between two checks no more
// than standstill counts, so that a pause of the whole machine, which a virtual machine
// may have at any time, is not taken for a hang.
func Within(d time.Duration, holds func() bool) bool {
	for checked := time.Now(); !holds(); {
		if d <= 0 {
			return false
		}
		<-time.After(interval)
		now := time.Now()
		d -= min(now.Sub(checked), standstill)
		checked = now
	}
	return true
}

// Receive returns the next value of c, or the zero value if c is closed. After
// Patience it fails the test like Eventually: what is the event that the value
// represents.
func Receive[T any](t testing.TB, what string, c <-chan T, state ...func() string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(Patience):
		fail(t, what, state)
	}
	return v
}

// Must fails the test if one of the steps that prepare it returned an error.
func Must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// Advance advances the virtual clock of the synctest bubble that it is
// called in by d, and returns when every other goroutine of the bubble is blocked.
// Outside of a bubble it panics.
func Advance(d time.Duration) {
	synctest.Wait() // panics outside of a bubble
	time.Sleep(d)
	synctest.Wait()
}

// Descriptors returns how many file descriptors this process has open.
func Descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	Must(t, err)
	return len(entries)
}

// FreePort returns an address of the loopback with a TCP port on which nothing listened a
// moment ago.
func FreePort(t testing.TB) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	Must(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// Moving is a connection whose Read or Write fails if it has not transferred a byte within
// Patience. It does not limit the duration of a whole transfer, which depends on the
// machine.
type Moving struct{ net.Conn }

// Read implements io.Reader.
func (m Moving) Read(p []byte) (int, error) {
	if err := m.SetReadDeadline(time.Now().Add(Patience)); err != nil {
		return 0, err
	}
	return m.Conn.Read(p)
}

// Write implements io.Writer.
func (m Moving) Write(p []byte) (int, error) {
	if err := m.SetWriteDeadline(time.Now().Add(Patience)); err != nil {
		return 0, err
	}
	return m.Conn.Write(p)
}

// Unwrapped returns a text that was wrapped for a terminal with single spaces between its
// words.
func Unwrapped(text string) string { return strings.Join(strings.Fields(text), " ") }
