//go:build !race

package fastpath

import (
	"slices"
	"testing"
)

// TestPlainSendDoesNotAllocate is not for the race detector: with it sync.Pool,
// which x/net keeps its headers in, forgets at random.
func TestPlainSendDoesNotAllocate(t *testing.T) {
	to, from := openUDP(t, "127.0.0.1"), openUDP(t, "127.0.0.1")
	s := newBatchSender(newOutlets(from.fd, from.fd, false), from.addr.Addr())
	msgs := slices.Repeat(messages(NewPeer(nil, to.addr))[:5], 8)
	noAllocs(t, func() {
		if n, errno := s.send(msgs); n == 0 {
			t.Fatal(errno)
		}
	})
}
