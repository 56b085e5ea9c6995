package mmsg_test

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab/mmsg"
)

// pair returns two connected datagram sockets that do not block.
func pair(t *testing.T) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return fds[0], fds[1]
}

func TestMessagesArriveInOrderWithTheirLengths(t *testing.T) {
	a, b := pair(t)
	const count = 5
	out, in := mmsg.NewBatch(count), mmsg.NewBatch(count+2)
	room := make([][]byte, in.Size())
	for i := range count {
		out.Set(i, fmt.Appendf(nil, "message %*d", i+1, i))
	}
	for i := range room {
		room[i] = make([]byte, 64)
		in.Set(i, room[i])
	}
	if n, err := out.Send(a, 1, count, 0); n != count-1 || err != nil {
		t.Fatalf("sent %d of %d: %v", n, count-1, err)
	}
	n, err := in.Recv(b, 0)
	if n != count-1 || err != nil {
		t.Fatalf("received %d of %d: %v", n, count-1, err)
	}
	for i := range n {
		want := fmt.Sprintf("message %*d", i+2, i+1)
		if got := string(room[i][:in.Len(i)]); got != want {
			t.Errorf("message %d is %q, want %q", i, got, want)
		}
	}
	if n, err := in.Recv(b, 0); n != 0 || !errors.Is(err, unix.EAGAIN) {
		t.Errorf("from an empty socket: %d, %v", n, err)
	}
}

func TestAFullSocketTakesWhatFits(t *testing.T) {
	a, _ := pair(t)
	out := mmsg.NewBatch(1000)
	payload := make([]byte, 4096)
	for i := range out.Size() {
		out.Set(i, payload)
	}
	n, err := out.Send(a, 0, out.Size(), 0)
	if n <= 0 || n >= out.Size() || err != nil {
		t.Fatalf("a socket with a bounded buffer took %d of %d messages: %v", n, out.Size(), err)
	}
	if n, err := out.Send(a, n, out.Size(), 0); n != 0 || !errors.Is(err, unix.EAGAIN) {
		t.Errorf("the next call: %d, %v", n, err)
	}
}
