package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
)

const (
	// requestTimeout is how long one attempt at a request waits for its answer.
	requestTimeout = 5 * time.Second
	// pingEvery and pingTimeout find a connection that a cut wire has made
	// mute. etcd refuses pings that come faster than every 5 s
	// (--grpc-keepalive-min-time).
	pingEvery   = 10 * time.Second
	pingTimeout = 5 * time.Second
)

// dialBackoff is the pace of new connections. gRPC's own goes up to two
// minutes, which is long for a node that waits for its peers.
var dialBackoff = grpcbackoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second}

// clientConfig checks o.
func (o *Options) clientConfig() (clientv3.Config, error) {
	secure, err := o.checkEndpoints()
	if err != nil {
		return clientv3.Config{}, err
	}
	if (o.Username == "") != (o.Password == "") {
		return clientv3.Config{}, fmt.Errorf("etcd user: --etcd-username and --etcd-password come together; set both or neither")
	}
	c := clientv3.Config{
		Endpoints:            o.Endpoints,
		Username:             o.Username,
		Password:             string(o.Password),
		DialTimeout:          requestTimeout, // of the log-in
		DialKeepAliveTime:    pingEvery,
		DialKeepAliveTimeout: pingTimeout,
		PermitWithoutStream:  true,
		MaxUnaryRetries:      1, // ride does it, and says so
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: dialBackoff, MinConnectTimeout: requestTimeout}),
			grpc.WithChainUnaryInterceptor(failFast),
		},
	}
	if secure {
		if c.TLS, err = o.tlsConfig(); err != nil {
			return clientv3.Config{}, err
		}
	} else if err := o.checkFiles(); err != nil {
		return clientv3.Config{}, err
	}
	return c, nil
}

// failFast lets a request fail with the reason why there is no connection. The
// client would have it wait for one, and end with a deadline that explains
// nothing.
func failFast(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(ctx, method, req, reply, cc, append(opts, grpc.WaitForReady(false))...)
}

// CheckEndpoints says what is wrong with the form of o.Endpoints. Open does so as
// well; it is for a command line that is to be refused before anything is done.
func (o *Options) CheckEndpoints() error {
	_, err := o.checkEndpoints()
	return err
}

// checkEndpoints says whether the endpoints are to be spoken to in TLS.
func (o *Options) checkEndpoints() (secure bool, err error) {
	const want = `want a URL such as "http://192.0.2.1:2379"; mend --etcd-endpoints`
	if len(o.Endpoints) == 0 {
		return false, fmt.Errorf("etcd endpoints: none is given; name one or more with --etcd-endpoints")
	}
	for i, e := range o.Endpoints {
		text := e
		if !strings.Contains(text, "://") {
			text = "http://" + text
		}
		u, err := url.Parse(text)
		switch {
		case err != nil:
			// The error of url.Parse quotes the text, which may hold a password.
			return false, fmt.Errorf("etcd endpoints: number %d is no URL; %s", i+1, want)
		case u.User != nil:
			return false, fmt.Errorf("etcd endpoints: number %d, %s, has a user in it; use --etcd-username and --etcd-password", i+1, u.Host)
		case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "":
			return false, fmt.Errorf("etcd endpoints: number %d, %q: %s", i+1, e, want)
		case i > 0 && secure != (u.Scheme == "https"):
			return false, fmt.Errorf("etcd endpoints: %s and %s: http and https cannot be mixed; mend --etcd-endpoints", o.Endpoints[0], e)
		}
		secure = u.Scheme == "https"
	}
	return secure, nil
}

// checkFiles refuses files that cannot be used, also where none is needed: who
// gives them expects TLS.
func (o *Options) checkFiles() error {
	if o.CAFile == "" && o.CertFile == "" && o.KeyFile == "" {
		return nil
	}
	_, err := o.tlsConfig()
	return err
}

func (o *Options) tlsConfig() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		text, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("etcd CA: %w; name a PEM file with --etcd-cafile", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("etcd CA: %s holds no certificate in PEM; name another file with --etcd-cafile", o.CAFile)
		}
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		return nil, fmt.Errorf("etcd client certificate: --etcd-certfile and --etcd-keyfile come together; set both or neither")
	}
	if o.CertFile == "" {
		return c, nil
	}
	load := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("etcd client certificate %s with key %s: %w; mend --etcd-certfile and --etcd-keyfile", o.CertFile, o.KeyFile, err)
		}
		return &pair, nil
	}
	if _, err := load(nil); err != nil {
		return nil, err
	}
	c.GetClientCertificate = load
	return c, nil
}

// exposures says what of o others on the wire could read or use.
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
			why = append(why, fmt.Sprintf("%s is plain HTTP, so the password can be read on its way", e))
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
