package netlab_test

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
)

// udpSocket opens a socket on an address in a namespace.
func udpSocket(t *testing.T, ns *netlab.Namespace, addr netip.Addr) (fd int, bound unix.Sockaddr) {
	t.Helper()
	err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: addr.As4()}); err != nil {
		t.Fatal(err)
	}
	if bound, err = unix.Getsockname(fd); err != nil {
		t.Fatal(err)
	}
	return fd, bound
}

func TestAWireLosesTheFractionThatIsAskedFor(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Fatal("nft is not there: run scripts/install-deps.sh")
	}
	for _, wire := range []netlab.WireKind{netlab.Super, netlab.MTU} {
		t.Run(string(wire), func(t *testing.T) {
			topo := netlabtest.New(t, netlab.Options{Wire: wire, Loss: 0.2})
			a, b := topo.Hosts[0], topo.Hosts[1]
			client, _ := udpSocket(t, a.NS, a.Addr)
			server, to := udpSocket(t, b.NS, b.Addr)
			const sent = 5000
			received, buf := 0, make([]byte, 8)
			drain := func() {
				for {
					if _, _, err := unix.Recvfrom(server, buf, unix.MSG_DONTWAIT); err != nil {
						return
					}
					received++
				}
			}
			for range sent {
				if err := unix.Sendto(client, buf, 0, to); err != nil {
					t.Fatal(err)
				}
				drain()
			}
			if err := unix.SetsockoptTimeval(server, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
				t.Fatal(err)
			}
			for {
				if _, _, err := unix.Recvfrom(server, buf, 0); err != nil {
					break // nothing more is on its way
				}
				received++
			}
			// The standard deviation is 28 datagrams.
			if lost := sent - received; lost < 800 || lost > 1200 {
				t.Errorf("%d of %d datagrams were lost, want about 1000", lost, sent)
			}
		})
	}
}

func TestLossHasLimits(t *testing.T) {
	for _, opts := range []netlab.Options{{Loss: -0.1}, {Loss: 1.1}, {Loss: 0.1, Impair: &netlab.Impairment{}}} {
		if topo, err := netlab.NewTopology(opts); err == nil {
			topo.Close()
			t.Errorf("%+v was made", opts)
		} else if !strings.Contains(err.Error(), "loss") {
			t.Error(err)
		}
	}
}

func TestLossWithoutNftSaysWhatToInstall(t *testing.T) {
	netlabtest.Root(t)
	t.Setenv("PATH", t.TempDir())
	_, err := netlab.NewTopology(netlab.Options{Loss: 0.1})
	if err == nil || !strings.Contains(err.Error(), "apt-get install nftables") {
		t.Errorf("got %v", err)
	}
}
