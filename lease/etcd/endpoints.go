package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// resolveTimeout bounds the resolution of the host names of all endpoints.
const resolveTimeout = 2 * time.Second

// resolver resolves host names of endpoints. Tests replace it.
var resolver = net.DefaultResolver

// EndpointAddrs returns the addresses of etcd's endpoints. It resolves host names, all
// at once, for at most two seconds. The error names those that could not be resolved;
// the addresses of the others are returned with it.
func EndpointAddrs(ctx context.Context, endpoints []string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	found := make([][]netip.Addr, len(endpoints))
	errs := make([]error, len(endpoints))
	var resolving sync.WaitGroup
	for i, e := range endpoints {
		u, err := parseEndpoint(e)
		if err != nil {
			continue // refused elsewhere
		}
		if a, err := netip.ParseAddr(u.Hostname()); err == nil {
			found[i] = []netip.Addr{a}
			continue
		}
		resolving.Go(func() {
			if found[i], err = resolver.LookupNetIP(ctx, "ip", u.Hostname()); err != nil {
				errs[i] = fmt.Errorf("resolve etcd endpoint %s: %w", u.Host, err)
			}
		})
	}
	resolving.Wait()
	var all []netip.Addr
	for _, addrs := range found {
		for _, a := range addrs {
			all = append(all, a.Unmap())
		}
	}
	return all, errors.Join(errs...)
}
