package trace

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/echo"
)

// podNamespace returns an open descriptor of the network namespace that has an address,
// among those of all processes and those with names; -1 if there is none. Only namespaces
// at the other end of one of this host's interfaces count: others may have the same
// addresses.
func podNamespace(a netip.Addr) int {
	var near []int // their numbers, by which this namespace knows them
	links, _ := netlink.LinkList()
	for _, l := range links {
		if id := l.Attrs().NetNsID; id >= 0 && !slices.Contains(near, id) {
			near = append(near, id)
		}
	}
	for _, pattern := range []string{"/proc/[0-9]*/ns/net", "/run/netns/*", "/run/docker/netns/*"} {
		paths, _ := filepath.Glob(pattern) // which fails only for a bad pattern
		for _, path := range paths {
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				continue
			}
			if id, err := netlink.GetNetNsIdByFd(fd); err == nil && slices.Contains(near, id) {
				if hasAddr(fd, a) {
					return fd
				}
				near = slices.DeleteFunc(near, func(n int) bool { return n == id })
			}
			unix.Close(fd)
		}
	}
	return -1
}

// hasAddr reports whether a namespace has an address.
func hasAddr(fd int, a netip.Addr) (has bool) {
	err := inNamespace(fd, func() error {
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		for _, one := range addrs {
			if ip, ok := netip.AddrFromSlice(one.IP); ok && ip.Unmap() == a {
				has = true
			}
		}
		return err
	})
	return has && err == nil
}

// inNamespace calls f in a network namespace, on a thread that ends with it.
func inNamespace(fd int, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked, so that the thread is not used again
		err := unix.Setns(fd, unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// Sent is how the probes were sent.
type Sent struct {
	Small int `json:"small"`
	Full  int `json:"full"`
	Size  int `json:"full_size,omitempty"` // of the full ones in bytes
	// InPod is set if they were sent in the network namespace of the pod. Otherwise the
	// node has sent them, so that they did not pass its FORWARD rules.
	InPod   bool   `json:"in_pod"`
	Problem string `json:"problem,omitempty"` // why some were not sent
}

const (
	smallProbes = 3
	fullProbes  = 2
	// probePause is the time between probes, so that none waits behind another.
	probePause = 50 * time.Millisecond
)

// Send sends small probes and, if full is not 0, some of full bytes, from the pod with the
// address p.From or, if its namespace is not found or local is set, from this node.
func (p *Packet) Send(m Mark, full int, local bool) (sent Sent) {
	fd := -1
	if !local {
		fd = podNamespace(p.From)
	}
	send := func() error { return p.send(m, full, &sent) }
	var err error
	if fd >= 0 {
		defer unix.Close(fd)
		sent.InPod = true
		err = inNamespace(fd, send)
	} else {
		err = send()
	}
	if err != nil {
		sent.Problem = err.Error()
	}
	return sent
}

func (p *Packet) send(m Mark, full int, sent *Sent) error {
	var to unix.Sockaddr
	family := unix.AF_INET
	if p.To.Is6() {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: p.To.As16()}
	} else {
		to = &unix.SockaddrInet4{Addr: p.To.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW) // which implies IP_HDRINCL
	if err != nil {
		return fmt.Errorf("open raw socket: %w; run as root", err)
	}
	defer unix.Close(fd)
	if p.To.Is6() {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_HDRINCL, 1); err != nil { // Linux 4.5
			return fmt.Errorf("set IPV6_HDRINCL: %w", err)
		}
	}
	var errs []error
	sendAll := func(count int, b []byte, size *int) {
		for range count {
			if err = unix.Sendto(fd, b, 0, to); err != nil {
				break
			}
			*size++
			time.Sleep(probePause)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("send a probe of %d bytes: %w", len(b), err))
		}
	}
	sendAll(smallProbes, p.probe(m, 0), &sent.Small)
	if full > echo.IPHeaderLen(p.To)+smallData && p.Proto != TCP {
		sent.Size = full
		sendAll(fullProbes, p.probe(m|1, full), &sent.Full)
	}
	return errors.Join(errs...)
}
