package etcdflags

import (
	"bytes"
	"flag"
	"io"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/daemon"
	"github.com/twillnet/twill/lease/etcd"
)

// settle returns the options of a command line and an environment.
func settle(args []string, environ map[string]string) (etcd.Options, error) {
	fs := flag.NewFlagSet("test", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	f := Define(fs)
	if err := fs.Parse(args); err != nil {
		return etcd.Options{}, err
	}
	err := f.Settle(func(name string) (string, bool) {
		v, ok := environ[name]
		return v, ok
	})
	return f.Options(slog.New(slog.DiscardHandler)), err
}

func TestCommandLineGoesBeforeEnvironment(t *testing.T) {
	o, err := settle([]string{"--etcd-prefix=/mine"}, map[string]string{
		"FLANNELD_ETCD_ENDPOINTS": "http://192.0.2.1:2379, http://192.0.2.2:2379",
		"FLANNELD_ETCD_PREFIX":    "/theirs",
		"FLANNELD_ETCD_USERNAME":  "node",
		"FLANNELD_ETCD_PASSWORD":  "quiet",
		"FLANNELD_ETCD_CAFILE":    "",
	})
	if err != nil {
		t.Fatal(err)
	}
	o.Logger = nil
	want := etcd.Options{
		Endpoints: []string{"http://192.0.2.1:2379", "http://192.0.2.2:2379"}, Prefix: "/mine",
		Username: "node", Password: "quiet",
	}
	if !reflect.DeepEqual(o, want) {
		t.Errorf("got %+v, want %+v", o, want)
	}
}

func TestWrongFlagIsNamed(t *testing.T) {
	for _, tt := range []struct{ arg, want string }{
		{"--etcd-prefix=", "--etcd-prefix"},
		{"--etcd-username=node", "--etcd-username and --etcd-password"},
		{"--etcd-keyfile=key.pem", "--etcd-certfile and --etcd-keyfile"},
		{"--etcd-endpoints=http://192.0.2.1:2379,", "none of them empty"},
		{"--etcd-endpoints=ftp://192.0.2.1", "--etcd-endpoints"},
	} {
		if _, err := settle([]string{tt.arg}, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.arg, err, tt.want)
		}
	}
}

func TestHelpShowsNoPassword(t *testing.T) {
	fs := flag.NewFlagSet("test", flag.ContinueOnError)
	f := Define(fs)
	if err := f.Settle(func(name string) (string, bool) {
		return "quiet", name == "FLANNELD_ETCD_PASSWORD" || name == "FLANNELD_ETCD_USERNAME"
	}); err != nil {
		t.Fatal(err)
	}
	var help bytes.Buffer
	fs.SetOutput(&help)
	fs.PrintDefaults()
	if strings.Contains(help.String(), "quiet") {
		t.Errorf("got\n%s", help.String())
	}
}

// TestFlagsAreTheDaemons compares names and defaults with twilld --help.
func TestFlagsAreTheDaemons(t *testing.T) {
	var help bytes.Buffer
	if err := daemon.Run(t.Context(), []string{"--help"}, func(string) (string, bool) { return "", false }, &help, io.Discard); err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(help.String(), "\netcd\n")
	section, _, _ = strings.Cut(section, "\n\n")
	text := strings.Join(strings.Fields(section), " ")
	fs := flag.NewFlagSet("test", flag.ContinueOnError)
	Define(fs)
	n := 0
	fs.VisitAll(func(f *flag.Flag) {
		n++
		if !strings.Contains(text, "--"+f.Name+" ") {
			t.Errorf("twilld has no --%s", f.Name)
		}
		if f.DefValue != "" && !strings.Contains(text, "(default "+f.DefValue+")") {
			t.Errorf("--%s: default %s is not twilld's", f.Name, f.DefValue)
		}
	})
	if has := strings.Count("\n"+section, "\n  --etcd-"); has != n { // not those that the texts speak of
		t.Errorf("twilld has %d flags of etcd, twill %d:\n%s", has, n, section)
	}
}
