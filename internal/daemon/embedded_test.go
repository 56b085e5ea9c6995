package daemon

import (
	"slices"
	"strings"
	"testing"
)

func TestEmbeddedEtcdIsAskedUnlessAnotherIsNamed(t *testing.T) {
	state := func(dir string) environment { return environment{"STATE_DIRECTORY": dir} }
	for _, tt := range []struct {
		name      string
		args      []string
		env       environment
		dir       string
		endpoints []string
	}{
		{"alone", []string{"--embedded-etcd"}, state(""), "/var/lib/twill/etcd", []string{"http://127.0.0.1:2379"}},
		{"under systemd", []string{"--embedded-etcd"}, state("/srv/twill:/srv/more"), "/srv/twill/etcd", []string{"http://127.0.0.1:2379"}},
		{"in a directory", []string{"--embedded-etcd=/data"}, state("/srv/twill"), "/data", []string{"http://127.0.0.1:2379"}},
		{"on another port", []string{"--embedded-etcd", "--embedded-etcd-listen=192.0.2.1:4001"}, state(""), "/var/lib/twill/etcd", []string{"http://127.0.0.1:4001"}},
		{"beside another", []string{"--embedded-etcd", "--etcd-endpoints=http://192.0.2.9:2379"}, state(""), "/var/lib/twill/etcd", []string{"http://192.0.2.9:2379"}},
		{"not", []string{"--embedded-etcd=false"}, state(""), "", []string{"http://127.0.0.1:4001", "http://127.0.0.1:2379"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o, err := parse(tt.args, tt.env)
			if err != nil {
				t.Fatal(err)
			}
			if o.embedded.dir != tt.dir || !slices.Equal(o.etcd.Endpoints, tt.endpoints) {
				t.Errorf("data in %q, endpoints %v", o.embedded.dir, o.etcd.Endpoints)
			}
		})
	}
}

func TestEmbeddedEtcdFlagsThatCannotBeAreRefused(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--embedded-etcd-listen=192.0.2.1"}, "without --embedded-etcd"},
		{[]string{"--embedded-etcd", "--embedded-etcd-listen=host"}, "want an IP address"},
		{[]string{"--embedded-etcd="}, "name of a directory"},
	} {
		_, err := parse(tt.args, nil)
		if ExitCode(err) != 2 || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v", tt.args, err)
		}
	}
}
