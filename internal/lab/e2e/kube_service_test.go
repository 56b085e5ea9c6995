package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

const (
	servicePort = 80
	podPort     = 8080
)

// expose creates a Service of both families for the pods of a name, and returns its
// addresses.
func (l *kubeletLab) expose(name string) (addrs []netip.Addr) {
	l.t.Helper()
	ports := []any{
		map[string]any{"name": "tcp", "protocol": "TCP", "port": servicePort, "targetPort": podPort},
		map[string]any{"name": "udp", "protocol": "UDP", "port": servicePort, "targetPort": podPort},
	}
	var s struct {
		Spec struct{ ClusterIPs []netip.Addr }
	}
	l.Do(http.MethodPost, "/api/v1/namespaces/default/services", map[string]any{
		"metadata": map[string]any{"name": name},
		"spec":     map[string]any{"selector": map[string]any{"app": name}, "ipFamilyPolicy": "RequireDualStack", "ports": ports},
	}, &s)
	if len(s.Spec.ClusterIPs) != 2 {
		l.t.Fatalf("the Service %s has the addresses %v, want one of each family", name, s.Spec.ClusterIPs)
	}
	return s.Spec.ClusterIPs
}

// proxyMode returns the mode that kube-proxy reports.
func (k *kubelet) proxyMode() string {
	client := http.Client{Timeout: testkit.Patience, Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return k.host.NS.Dial(ctx, network, addr)
		},
		DisableKeepAlives: true,
	}}
	res, err := client.Get("http://127.0.0.1:10249/proxyMode")
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// reaches checks that a pod reaches another through the addresses of the other's Service,
// by TCP and UDP, and is seen with its own address.
func (l *kubeletLab) reaches(t *testing.T, from, to *netlab.Pod, service []netip.Addr) {
	t.Helper()
	addr := netip.AddrPortFrom(netip.IPv6Unspecified(), podPort)
	listener, err := to.NS.Listen("tcp", addr.String())
	testkit.Must(t, err)
	defer listener.Close()
	packets, err := listenUDP(to.NS, addr)
	testkit.Must(t, err)
	defer packets.Close()
	go func() { // answers each connection with the address it is from
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, addrOf(c.RemoteAddr()))
			c.Close()
		}
	}()
	go func() {
		var b [16]byte
		for {
			_, from, err := packets.ReadFromUDPAddrPort(b[:])
			if err != nil {
				return
			}
			_, _ = packets.WriteToUDPAddrPort([]byte(addrOf(net.UDPAddrFromAddrPort(from))), from)
		}
	}()
	for _, s := range service {
		want := from.Addr
		if s.Is6() {
			want = from.Addr6
		}
		for _, network := range []string{"tcp", "udp"} {
			var got string
			l.eventually(fmt.Sprintf("%s reaches the Service %s by %s as %s", from.Addr, s, network, want), func() bool {
				got = asked(from, network, netip.AddrPortFrom(s, servicePort))
				return got == want.String()
			}, func() string { return "it got " + got + "\n" + l.nodes[0].log() + l.nodes[1].log() })
		}
	}
}

// addrOf returns the address of a without its port.
func addrOf(a net.Addr) string {
	p, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return err.Error()
	}
	return p.Addr().Unmap().String()
}

// asked connects a pod to a server that answers with the address that it sees, and
// returns the answer or an error.
func asked(from *netlab.Pod, network string, to netip.AddrPort) string {
	const patience = 2 * time.Second // a Service without an endpoint may not answer
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := from.NS.Dial(ctx, network, to.String())
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return err.Error()
	}
	b := make([]byte, 64)
	if network == "udp" {
		if _, err := c.Write([]byte("who am I")); err != nil {
			return err.Error()
		}
	}
	n, err := c.Read(b)
	if err != nil && err != io.EOF {
		return err.Error()
	}
	return string(b[:n])
}
