package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace. Its methods may be called from several
// goroutines; after Close only Close may be called.
type Namespace struct {
	label string
	path  string // of the name that Close removes; empty if there is none
	fd    int
	nl    *netlink.Handle
	// starts feeds the one thread that forks: a child's parent-death signal
	// is sent when the thread that forked it ends, so that thread must live as
	// long as the namespace is held.
	starts chan func()
	close  func() error
}

// New creates an anonymous namespace, which lives as long as this process holds it.
// Its loopback is up. label is used in messages.
func New(label string) (*Namespace, error) {
	n, err := create(label, "")
	if err != nil {
		return nil, fmt.Errorf("create network namespace %s: %w", label, explain(err))
	}
	return n, nil
}

// explain adds the remedy to an error if the process lacks the privilege to create
// or enter namespaces.
func explain(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (run as root)", err)
	}
	return err
}

// create creates a namespace, with a name if path is not empty.
func create(label, path string) (*Namespace, error) {
	fd := -1
	err := errOnThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if path != "" {
			if err := giveName(path); err != nil {
				return err
			}
		}
		fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			err = errors.Join(fmt.Errorf("open /proc/thread-self/ns/net: %w", err), removeName(path))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	n, err := hold(label, fd)
	if err != nil {
		return nil, errors.Join(err, removeName(path))
	}
	n.path = path
	if err := n.prepare(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// hold opens the netlink socket of the namespace and starts the thread that
// forks in it. It takes ownership of fd, even if it fails.
func hold(label string, fd int) (*Namespace, error) {
	n := &Namespace{label: label, fd: fd, starts: make(chan func())}
	n.close = sync.OnceValue(n.release)
	err := n.Do(func() (err error) {
		n.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	entered := make(chan error)
	go onThread(func() {
		err := unix.Setns(fd, unix.CLONE_NEWNET)
		entered <- err
		if err != nil {
			return
		}
		for start := range n.starts {
			start()
		}
	})
	if err := <-entered; err != nil {
		n.nl.Close()
		unix.Close(fd)
		return nil, fmt.Errorf("enter network namespace: %w", err)
	}
	held.Store(n, label)
	return n, nil
}

// prepare puts a new namespace into the state that tests expect: loopback up,
// IPv6 addresses usable at once, no source checks. It also lifts the limit on how many
// fragments of other datagrams may arrive between two fragments of a datagram
// (ipfrag_max_dist, which is 64): if a sender is preempted between two fragments, the
// kernel would drop the datagram.
func (n *Namespace) prepare() error {
	for _, key := range []string{
		"net/ipv6/conf/all/accept_dad", "net/ipv6/conf/default/accept_dad",
		"net/ipv6/conf/all/accept_ra", "net/ipv6/conf/default/accept_ra",
		"net/ipv4/conf/all/rp_filter", "net/ipv4/conf/default/rp_filter",
		"net/ipv4/ipfrag_max_dist",
	} {
		if err := n.Sysctl(key, "0"); err != nil {
			return err
		}
	}
	return n.linkUp("lo")
}

func (n *Namespace) linkUp(name string) error {
	link, err := n.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: find %s: %w", n, name, err)
	}
	if err := n.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("%s: set %s up: %w", n, name, err)
	}
	return nil
}

// Close releases the namespace and removes its name if NewNamed gave it one.
// Processes that Command started in it are killed. It may be called more than
// once.
func (n *Namespace) Close() error { return n.close() }

func (n *Namespace) release() error {
	held.Delete(n)
	close(n.starts)
	n.nl.Close()
	err := unix.Close(n.fd)
	if n.path != "" {
		err = errors.Join(err, removeName(n.path))
	}
	return err
}

// held maps each namespace that this process has not closed to its label.
var held sync.Map

// Held lists the labels of the namespaces that this process has not closed,
// for leak checks.
func Held() []string {
	var labels []string
	held.Range(func(_, label any) bool {
		labels = append(labels, label.(string))
		return true
	})
	return labels
}

// String returns the label or name.
func (n *Namespace) String() string { return n.label }

// FD returns the namespace's descriptor, for netlink attributes. The Namespace still
// owns it.
func (n *Namespace) FD() int { return n.fd }

// Netlink returns a NETLINK_ROUTE handle in the namespace. The Namespace still
// owns it.
func (n *Namespace) Netlink() *netlink.Handle { return n.nl }

// Do runs f on a thread inside the namespace and returns its error. Sockets
// that f opens belong to the namespace and can be used anywhere afterwards.
// Goroutines that f starts are outside it, so f must not open sockets through
// packages that start some, such as net/http or the resolver.
func (n *Namespace) Do(f func() error) error {
	return errOnThread(func() error {
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", n, explain(err))
		}
		return f()
	})
}

// Sysctl writes value to /proc/sys/key in the namespace. /proc/sys/net shows
// the namespace of the thread that opens it, not that of the process.
func (n *Namespace) Sysctl(key, value string) error {
	return n.Do(func() error {
		f, err := os.OpenFile(filepath.Join("/proc/sys", key), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(value)
		return errors.Join(err, f.Close())
	})
}

// Listen is net.Listen in the namespace. The host in address is an IP.
func (n *Namespace) Listen(network, address string) (l net.Listener, err error) {
	err = n.Do(func() error {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// ListenPacket is net.ListenPacket in the namespace. The host in address is
// an IP.
func (n *Namespace) ListenPacket(network, address string) (c net.PacketConn, err error) {
	err = n.Do(func() error {
		c, err = net.ListenPacket(network, address)
		return err
	})
	return c, err
}

// Dial is net.Dialer.DialContext in the namespace. The host in address is an
// IP: for a name Go dials from goroutines that are outside the namespace.
func (n *Namespace) Dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	err = n.Do(func() error {
		c, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return c, err
}
