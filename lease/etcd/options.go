package etcd

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
)

// DefaultPrefix is flannel's default prefix.
const DefaultPrefix = "/coreos.com/network"

// Options hold the location of etcd and the credentials of the client.
type Options struct {
	// Endpoints are URLs, or host:port for plain HTTP. All must be members of
	// one cluster. One that answers is enough to start.
	Endpoints []string
	// Prefix is the prefix of the network's keys; Open uses DefaultPrefix if it is
	// empty.
	Prefix string

	// CAFile holds the CA certificates by which etcd's certificate is verified;
	// empty means those of the system. CertFile and KeyFile are this client's own
	// and must be set together; they are read again for each connection, so they
	// can be replaced. All are PEM and require https endpoints.
	CAFile, CertFile, KeyFile string

	// Username and Password must be set together; both empty means no user.
	Username string
	Password Secret

	Logger *slog.Logger
}

// Check finds invalid values without depending on the host, and names the flag.
// Open also performs these checks, and reads the files.
func (o *Options) Check() error {
	switch {
	case o.Prefix == "":
		return errors.New("--etcd-prefix is empty; set it to the prefix of the network's keys")
	case (o.Username == "") != o.Password.empty():
		return errors.New("etcd user: set both --etcd-username and --etcd-password, or neither")
	case (o.CertFile == "") != (o.KeyFile == ""):
		return errors.New("etcd client certificate: set both --etcd-certfile and --etcd-keyfile, or neither")
	case len(o.Endpoints) == 0:
		return errors.New("etcd endpoints: none given; set one or more with --etcd-endpoints")
	}
	const want = `want a URL such as "http://192.0.2.1:2379"; correct --etcd-endpoints`
	for i, e := range o.Endpoints {
		u, err := parseEndpoint(e)
		switch {
		case err != nil:
			// The error of url.Parse quotes the text, which may hold a password.
			return fmt.Errorf("etcd endpoints: number %d is not a URL; %s", i+1, want)
		case u.User != nil:
			return fmt.Errorf("etcd endpoints: number %d, %s, contains a user name; use --etcd-username and --etcd-password", i+1, u.Host)
		case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "":
			return fmt.Errorf("etcd endpoints: number %d, %q: %s", i+1, e, want)
		case (u.Scheme == "https") != o.secure():
			return fmt.Errorf("etcd endpoints: %s and %s: http and https cannot be mixed; correct --etcd-endpoints", o.Endpoints[0], e)
		}
	}
	return nil
}

func parseEndpoint(e string) (*url.URL, error) {
	if !strings.Contains(e, "://") {
		e = "http://" + e
	}
	return url.Parse(e)
}

// secure reports whether the endpoints use TLS. Either all of them are https, or none.
func (o *Options) secure() bool {
	u, err := parseEndpoint(o.Endpoints[0])
	return err == nil && u.Scheme == "https"
}

// Secret is a text that formats as stars unless it is empty, so that no log line,
// error, help text or JSON shows it. The text is behind a pointer because fmt prints
// the fields of a struct without calling their String. It is a flag.Value.
type Secret struct{ text *string }

const stars = "***"

// NewSecret returns a secret with the given text.
func NewSecret(text string) Secret { return Secret{&text} }

func (s Secret) empty() bool { return s.reveal() == "" }

func (s Secret) reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// String implements fmt.Stringer and flag.Value.
func (s Secret) String() string {
	if s.empty() {
		return ""
	}
	return stars
}

// GoString implements fmt.GoStringer.
func (s Secret) GoString() string { return s.String() }

// MarshalText implements encoding.TextMarshaler.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Set implements flag.Value.
func (s *Secret) Set(text string) error {
	*s = NewSecret(text)
	return nil
}
