package etcdflags_test

import (
	"bytes"
	"flag"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/daemon"
	"github.com/twillnet/twill/internal/etcdflags"
	"github.com/twillnet/twill/lease/etcd"
)

// settle returns the options of a command line and an environment.
func settle(args []string, environ map[string]string) (etcd.Options, error) {
	fs := flag.NewFlagSet("test", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	f := etcdflags.Define(fs)
	if err := fs.Parse(args); err != nil {
		return etcd.Options{}, err
	}
	err := f.Settle(func(name string) (string, bool) {
		v, ok := environ[name]
		return v, ok
	})
	return f.Options, err
}

func TestCommandLineGoesBeforeEnvironment(t *testing.T) {
	o, err := settle([]string{"--etcd-prefix=/mine"}, map[string]string{
		"FLANNELD_ETCD_ENDPOINTS": "http://192.0.2.1:2379, http://192.0.2.2:2379,\r",
		"FLANNELD_ETCD_PREFIX":    "/theirs",
		"FLANNELD_ETCD_USERNAME":  "node",
		"FLANNELD_ETCD_PASSWORD":  "quiet",
		"FLANNELD_ETCD_CAFILE":    "",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := etcd.Options{
		Endpoints: []string{"http://192.0.2.1:2379", "http://192.0.2.2:2379"}, Prefix: "/mine",
		Username: "node", Password: etcd.NewSecret("quiet"),
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
		{"--etcd-endpoints=http://192.0.2.1:2379,,http://192.0.2.2:2379", "without empty items"},
		{"--etcd-endpoints=ftp://192.0.2.1", "--etcd-endpoints"},
	} {
		if _, err := settle([]string{tt.arg}, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.arg, err, tt.want)
		}
	}
}

func TestHelpShowsNoPassword(t *testing.T) {
	fs := flag.NewFlagSet("test", flag.ContinueOnError)
	f := etcdflags.Define(fs)
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

// TestDaemonHasTheSameFlags compares with twilld --help.
func TestDaemonHasTheSameFlags(t *testing.T) {
	var help bytes.Buffer
	if err := daemon.Run(t.Context(), []string{"--help"}, nil, &help, io.Discard); err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(help.String()), " ")
	fs := flag.NewFlagSet("test", flag.ContinueOnError)
	etcdflags.Define(fs)
	n := 0
	fs.VisitAll(func(f *flag.Flag) {
		n++
		value, about := flag.UnquoteUsage(f)
		want := "--" + f.Name + " " + value + " " + strings.TrimPrefix(about, value+": ")
		if f.DefValue != "" {
			want += " (default " + f.DefValue + ")"
		}
		if !strings.Contains(text, want) {
			t.Errorf("twilld --help does not say %q", want)
		}
	})
	if has := strings.Count(help.String(), "\n  --etcd-"); has != n { // not those that the texts speak of
		t.Errorf("twilld has %d flags of etcd, twill %d", has, n)
	}
}

func TestWrongVariableIsNamed(t *testing.T) {
	_, err := settle(nil, map[string]string{"FLANNELD_ETCD_ENDPOINTS": ","})
	if err == nil || !strings.Contains(err.Error(), "FLANNELD_ETCD_ENDPOINTS: invalid value") {
		t.Errorf("got %v", err)
	}
}
