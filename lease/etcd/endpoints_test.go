package etcd

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
)

func TestEndpointsAreFoundByAddressAndByName(t *testing.T) {
	got, err := EndpointAddrs(t.Context(), []string{"https://10.5.2.9:2379", "10.5.3.9:2379", "http://[fd00::9]:2379", "http://localhost:2379"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"10.5.2.9", "10.5.3.9", "fd00::9", "127.0.0.1"} {
		if !slices.Contains(got, netip.MustParseAddr(want)) {
			t.Errorf("got %v, want %s among them", got, want)
		}
	}
}

// TestNameServerThatDoesNotAnswerIsNotWaitedForLong: what is known without it counts.
func TestNameServerThatDoesNotAnswerIsNotWaitedForLong(t *testing.T) {
	defer func(r *net.Resolver) { resolver = r }(resolver)
	end := make(chan struct{})
	defer close(end)
	resolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		<-end
		return nil, errors.New("the test has ended")
	}}
	type result struct {
		addrs []netip.Addr
		err   error
	}
	results := make(chan result, 1)
	go func() {
		addrs, err := EndpointAddrs(t.Context(), []string{"http://etcd.invalid:2379", "http://10.5.2.9:2379"})
		results <- result{addrs, err}
	}()
	got := testkit.Receive(t, "the answer, without that of the name server", results)
	if !slices.Equal(got.addrs, []netip.Addr{netip.MustParseAddr("10.5.2.9")}) {
		t.Errorf("got %v", got.addrs)
	}
	if got.err == nil || !strings.Contains(got.err.Error(), "resolve etcd endpoint etcd.invalid:2379: ") {
		t.Errorf("got %v", got.err)
	}
}
