package etcdflags

import (
	"errors"
	"log/slog"
	"strings"

	"github.com/twillnet/twill/lease/etcd"
)

// Settings say where etcd is and who asks it.
type Settings struct {
	Endpoints                 Endpoints
	Prefix                    string
	KeyFile, CertFile, CAFile string
	Username                  string
	Password                  Secret
}

// Defaults returns flannel's.
func Defaults() Settings {
	return Settings{
		Endpoints: Endpoints{"http://127.0.0.1:4001", "http://127.0.0.1:2379"},
		Prefix:    etcd.DefaultPrefix,
	}
}

// Check finds values that cannot be right whatever the host is like.
func (s *Settings) Check() error {
	switch {
	case s.Prefix == "":
		return errors.New("--etcd-prefix: the prefix of the network's keys is missing")
	case (s.Username == "") != (s.Password.reveal() == ""):
		return errors.New("--etcd-username and --etcd-password come together: set both or neither")
	case (s.CertFile == "") != (s.KeyFile == ""):
		return errors.New("--etcd-certfile and --etcd-keyfile come together: set both or neither")
	}
	return (&etcd.Options{Endpoints: s.Endpoints}).CheckEndpoints()
}

// Options returns what to open a store of leases with.
func (s *Settings) Options(log *slog.Logger) etcd.Options {
	return etcd.Options{
		Endpoints: s.Endpoints, Prefix: s.Prefix,
		CAFile: s.CAFile, CertFile: s.CertFile, KeyFile: s.KeyFile,
		Username: s.Username, Password: etcd.Secret(s.Password.reveal()),
		Logger: log,
	}
}

// Endpoints is a flag whose value is a list with commas in between. Set replaces
// the whole of it.
type Endpoints []string

// String implements flag.Value.
func (e *Endpoints) String() string { return strings.Join(*e, ",") }

// Set implements flag.Value.
func (e *Endpoints) Set(v string) error {
	var list Endpoints
	for part := range strings.SplitSeq(v, ",") {
		if part = strings.TrimSpace(part); part == "" {
			return errors.New("want one or more with commas in between, and none of them empty")
		}
		list = append(list, part)
	}
	*e = list
	return nil
}

// Secret is a flag that is never shown, neither as a default nor in a message.
// It is behind a pointer, since fmt looks into structs without asking String.
type Secret struct{ text *string }

// NewSecret returns a secret that is set.
func NewSecret(text string) Secret { return Secret{&text} }

// reveal returns what is secret, empty if nothing is.
func (s Secret) reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// String implements fmt.Stringer and flag.Value.
func (s Secret) String() string {
	if s.reveal() == "" {
		return ""
	}
	return "***"
}

// GoString implements fmt.GoStringer.
func (s Secret) GoString() string { return s.String() }

// Set implements flag.Value.
func (s *Secret) Set(v string) error {
	*s = NewSecret(v)
	return nil
}
