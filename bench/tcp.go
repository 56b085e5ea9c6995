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
)

const (
	// chunk is how much a stream writes and reads at once, as iperf3 does.
	chunk = 128 << 10
	// warmUp is how long a load runs before it counts: slow start, caches,
	// and the neighbour tables of a fresh path.
	warmUp = 300 * time.Millisecond
)

// streams is the load of n TCP streams from client to server at full speed.
func streams(n int) func(context.Context, *Connection, time.Duration) (Figures, error) {
	return func(ctx context.Context, c *Connection, d time.Duration) (Figures, error) {
		f, err := runStreams(ctx, c, n, d)
		if err != nil {
			return nil, fmt.Errorf("TCP, %d streams: %w", n, err)
		}
		return f, nil
	}
}

func runStreams(ctx context.Context, c *Connection, n int, d time.Duration) (Figures, error) {
	clients, servers, err := connect(ctx, c, n)
	if err != nil {
		return nil, err
	}
	var received atomic.Int64
	var group sync.WaitGroup
	stop := func() {
		for i := range clients {
			clients[i].Close()
			servers[i].Close()
		}
		group.Wait()
	}
	defer stop()
	for i := range clients {
		group.Go(func() { send(clients[i]) })
		group.Go(func() { receive(servers[i], &received) })
	}
	if err := sleep(ctx, warmUp); err != nil {
		return nil, err
	}
	m, err := startMeter(c.pids())
	if err != nil {
		return nil, err
	}
	bytes, resent := received.Load(), resentBy(clients)
	if err := sleep(ctx, d); err != nil {
		return nil, err
	}
	bytes, resent = received.Load()-bytes, resentBy(clients)-resent
	u, err := m.stop()
	if err != nil {
		return nil, err
	}
	if bytes == 0 {
		return nil, errors.New("no byte arrived")
	}
	gb := float64(bytes) / 1e9
	return Figures{
		throughput.Key:  8 * gb / u.elapsed.Seconds(),
		cpuPerGB.Key:    u.machine.Seconds() / gb,
		daemonCPU.Key:   u.daemons.Seconds() / gb,
		retransmits.Key: float64(resent),
	}, nil
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

// resentBy is the number of segments that the connections have sent again.
func resentBy(conns []net.Conn) (n uint64) {
	for _, conn := range conns {
		raw, err := conn.(syscall.Conn).SyscallConn()
		if err != nil {
			continue // closed: there is nothing to ask any more
		}
		raw.Control(func(fd uintptr) {
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
				n += uint64(info.Total_retrans)
			}
		})
	}
	return n
}

// sleep waits for d, or returns the error of a context that ends before.
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
