package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/bench/report"
)

const (
	// chunk is how much a stream writes and reads at once, as iperf3 does.
	chunk = 128 << 10
	// warmUp is how long a load runs before it is measured. It covers slow start, caches
	// and the neighbour tables of a fresh path.
	warmUp = 200 * time.Millisecond
)

// streams is the load of TCP streams at full speed, some from client to server
// and some back.
func streams(forward, back int) func(context.Context, *Connection, time.Duration) (report.Figures, error) {
	return func(ctx context.Context, c *Connection, d time.Duration) (report.Figures, error) {
		f, err := runStreams(ctx, c, forward, back, d)
		if err != nil {
			return nil, fmt.Errorf("TCP, %d streams and %d back: %w", forward, back, err)
		}
		return f, nil
	}
}

func runStreams(ctx context.Context, c *Connection, forward, back int, d time.Duration) (report.Figures, error) {
	b, err := startBulk(ctx, c, forward, back)
	if err != nil {
		return nil, err
	}
	defer b.stop()
	if err := sleep(ctx, warmUp); err != nil {
		return nil, err
	}
	m, err := startMeter(c.pids())
	if err != nil {
		return nil, err
	}
	bytes, resent := b.received.Load(), resentBy(b.senders)
	if err := sleep(ctx, d); err != nil {
		return nil, err
	}
	bytes, resent = b.received.Load()-bytes, resentBy(b.senders)-resent
	u, err := m.stop()
	if err != nil {
		return nil, err
	}
	if bytes == 0 {
		return nil, errors.New("no data arrived")
	}
	gb := float64(bytes) / 1e9
	return u.memory(report.Figures{
		report.Throughput.Key:     8 * gb / u.elapsed.Seconds(),
		report.CPUPerGB.Key:       u.machine.Seconds() / gb,
		report.DaemonCPUPerGB.Key: u.daemons.Seconds() / gb,
		report.Retransmits.Key:    float64(resent),
	}), nil
}

// bulk is a number of running TCP streams.
type bulk struct {
	senders, receivers []net.Conn
	received           atomic.Int64 // bytes
	running            sync.WaitGroup
}

// startBulk opens streams, all from the client as iperf3 does, and starts sending
// data forward on some and back on the others.
func startBulk(ctx context.Context, c *Connection, forward, back int) (*bulk, error) {
	clients, servers, err := connect(ctx, c, forward+back)
	if err != nil {
		return nil, err
	}
	b := &bulk{
		senders:   append(clients[:forward:forward], servers[forward:]...),
		receivers: append(servers[:forward:forward], clients[forward:]...),
	}
	for i := range b.senders {
		b.running.Go(func() { send(b.senders[i]) })
		b.running.Go(func() { receive(b.receivers[i], &b.received) })
	}
	return b, nil
}

// stop closes the streams and waits for their goroutines.
func (b *bulk) stop() {
	for i := range b.senders {
		b.senders[i].Close()
		b.receivers[i].Close()
	}
	b.running.Wait()
}

// connect opens n connections and returns their ends.
func connect(ctx context.Context, c *Connection, n int) (clients, servers []net.Conn, err error) {
	l, err := c.Server.NS.Listen("tcp", netip.AddrPortFrom(c.Server.Addr, 0).String())
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })() // ends Accept
	defer func() {
		if err != nil {
			for _, conn := range append(clients, servers...) {
				conn.Close()
			}
		}
	}()
	for range n {
		client, err := c.Client.NS.Dial(ctx, "tcp", l.Addr().String())
		if err != nil {
			return clients, servers, err
		}
		clients = append(clients, client)
		server, err := l.Accept()
		if err != nil {
			return clients, servers, err
		}
		servers = append(servers, server)
	}
	return clients, servers, nil
}

// send writes until the connection is closed.
func send(conn net.Conn) {
	buf := make([]byte, chunk)
	for {
		if _, err := conn.Write(buf); err != nil {
			return
		}
	}
}

// receive counts what arrives until the connection is closed.
func receive(conn net.Conn, n *atomic.Int64) {
	buf := make([]byte, chunk)
	for {
		m, err := conn.Read(buf)
		n.Add(int64(m))
		if err != nil {
			return
		}
	}
}

// resentBy is the number of segments that the connections have retransmitted.
func resentBy(conns []net.Conn) (n uint64) {
	for _, conn := range conns {
		raw, err := conn.(syscall.Conn).SyscallConn()
		if err != nil {
			continue // closed: its statistics are gone
		}
		raw.Control(func(fd uintptr) {
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
				n += uint64(info.Total_retrans)
			}
		})
	}
	return n
}

// sleep waits for d. It returns the error of ctx if that ends earlier.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
