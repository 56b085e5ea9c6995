//go:build !noetcd

package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
)

const (
	// requestTimeout bounds one attempt at a request.
	requestTimeout = 5 * time.Second
	// pingEvery and pingTimeout detect a connection that is dead without having been
	// closed. It is pinged only while a request or a watch is in progress: etcd ends
	// connections that are pinged without one ("too_many_pings"), or more often than
	// every 5 s (--grpc-keepalive-min-time).
	pingEvery   = 10 * time.Second
	pingTimeout = 5 * time.Second
)

// dialBackoff is the backoff between connection attempts. gRPC's default grows
// to two minutes, which is too long for a node that waits for its peers.
var dialBackoff = grpcbackoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second}

// clientConfig checks o.
func (o *Options) clientConfig() (clientv3.Config, error) {
	if err := o.Check(); err != nil {
		return clientv3.Config{}, err
	}
	c := clientv3.Config{
		Endpoints:            o.Endpoints,
		Username:             o.Username,
		Password:             o.Password.reveal(),
		DialTimeout:          requestTimeout, // of the login
		DialKeepAliveTime:    pingEvery,
		DialKeepAliveTimeout: pingTimeout,
		MaxUnaryRetries:      1, // retry does that, and logs it
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: dialBackoff, MinConnectTimeout: requestTimeout}),
			grpc.WithChainUnaryInterceptor(failFast),
		},
	}
	// Unusable files are refused even if no endpoint needs them: an operator who
	// names them expects TLS.
	if o.secure() || o.CAFile != "" || o.CertFile != "" {
		t, err := o.tlsConfig()
		if err != nil {
			return clientv3.Config{}, err
		}
		if o.secure() {
			c.TLS = t
		}
	}
	return c, nil
}

// failFast makes a request fail with the reason for a missing connection. By
// default the client waits for one and reports only that the deadline was
// exceeded.
func failFast(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(ctx, method, req, reply, cc, append(opts, grpc.WaitForReady(false))...)
}

func (o *Options) tlsConfig() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		text, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read etcd CA file: %w; name another with --etcd-cafile", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("read etcd CA file: %s contains no PEM certificate; name another with --etcd-cafile", o.CAFile)
		}
	}
	if o.CertFile == "" {
		return c, nil
	}
	load := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("load etcd client certificate %s with key %s: %w; correct --etcd-certfile and --etcd-keyfile", o.CertFile, o.KeyFile, err)
		}
		return &pair, nil
	}
	if _, err := load(nil); err != nil {
		return nil, err
	}
	c.GetClientCertificate = load
	return c, nil
}

// exposures lists the credentials in o that a plain HTTP endpoint exposes or ignores.
func (o *Options) exposures() []string {
	var why []string
	for _, e := range o.Endpoints {
		host, plain := strings.CutPrefix(e, "http://")
		if !plain && strings.Contains(e, "://") || isLoopback(host) {
			continue
		}
		if o.CAFile != "" || o.CertFile != "" {
			why = append(why, fmt.Sprintf("%s is plain HTTP, so the certificates are not used", e))
		}
		if o.Username != "" {
			why = append(why, fmt.Sprintf("%s is plain HTTP, so the password is sent in clear text", e))
		}
	}
	return why
}

func isLoopback(hostPort string) bool {
	host, _, err := net.SplitHostPort(strings.TrimSuffix(hostPort, "/"))
	if err != nil {
		host = hostPort
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return host == "localhost" || err == nil && ip.IsLoopback()
}
