//go:build !noembed

package embedetcd

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"

	"github.com/twillnet/twill/internal/httplimit"
)

// frontLimits bound the connections of other hosts. etcd itself accepts as many as the
// process may have descriptors, no matter which host opens them, and logs each that fails.
// A node has one connection, plus one for each command that runs on it. Each connection
// takes some 50 KiB.
var frontLimits = httplimit.Limits{Remote: 1024, PerAddress: 32, Local: 64}

const (
	// firstByteWait is how long a client without TLS may take to begin; with TLS,
	// etcd's listener bounds the handshake.
	firstByteWait = 10 * time.Second
	// writeWait is how long a client may leave data sent to it unread, which is longer
	// than the etcd waits for an answer to its pings.
	writeWait = time.Minute
	// acceptPause is the pause after a failure to accept, for example for lack of
	// descriptors.
	acceptPause = 100 * time.Millisecond
	// copyBuffer is the size of a connection's buffer for one direction.
	copyBuffer = 8 << 10
)

// front accepts connections from other hosts, and passes those with a certificate from the
// authority on to the etcd, which listens where no other host can reach it.
type front struct {
	listener net.Listener
	secure   bool
	// network and address are where the etcd listens.
	network, address string

	ending context.Context
	end    context.CancelFunc
	conns  sync.WaitGroup
}

// openFront listens on address. tls is nil if any client is accepted.
func openFront(listen netip.AddrPort, tls *transport.TLSInfo, network, address string) (*front, error) {
	l, err := net.Listen("tcp", listen.String())
	if err != nil {
		return nil, err
	}
	l = httplimit.Listener(l, frontLimits)
	if tls != nil {
		tl, err := transport.NewTLSListener(l, tls)
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		l = tl
	}
	f := &front{listener: l, secure: tls != nil, network: network, address: address}
	f.ending, f.end = context.WithCancel(context.Background())
	f.conns.Go(f.accept)
	return f, nil
}

// accept serves clients until the front is closed.
func (f *front) accept() {
	for {
		c, err := f.listener.Accept()
		switch {
		case err == nil:
			f.conns.Go(func() { f.serve(c) })
		case f.ending.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		default:
			select {
			case <-f.ending.Done():
			case <-time.After(acceptPause):
			}
		}
	}
}

// serve connects a client with the etcd until either closes its connection.
func (f *front) serve(client net.Conn) {
	defer client.Close()
	first := make([]byte, 1)
	if !f.secure {
		_ = client.SetReadDeadline(time.Now().Add(firstByteWait))
	}
	// The etcd never learns about a client that sends nothing.
	stop := context.AfterFunc(f.ending, func() { _ = client.Close() })
	defer stop()
	if _, err := io.ReadFull(client, first); err != nil {
		return
	}
	_ = client.SetReadDeadline(time.Time{})
	etcd, err := (&net.Dialer{Timeout: firstByteWait}).DialContext(f.ending, f.network, f.address)
	if err != nil {
		return
	}
	defer etcd.Close()
	if _, err := etcd.Write(first); err != nil {
		return
	}
	var done sync.WaitGroup
	done.Go(func() { relay(etcd, client) })
	relay(client, etcd)
	done.Wait()
}

// relay copies from one connection to another until one is closed, and then closes
// both.
func relay(to, from net.Conn) {
	// Without the wrappers, io.CopyBuffer would use larger buffers of its own.
	_, _ = io.CopyBuffer(struct{ io.Writer }{patient{to}}, struct{ io.Reader }{from}, make([]byte, copyBuffer))
	_ = from.Close()
	_ = to.Close()
}

// patient is a connection whose other end must read within writeWait.
type patient struct{ net.Conn }

// Write implements io.Writer.
func (p patient) Write(b []byte) (int, error) {
	_ = p.SetWriteDeadline(time.Now().Add(writeWait))
	return p.Conn.Write(b)
}

// close closes all connections.
func (f *front) close() {
	f.end()
	_ = f.listener.Close()
	f.conns.Wait()
}
