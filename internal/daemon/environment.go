package daemon

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/twillnet/twill/internal/etcdflags"
)

// environment holds the environment variables of the process.
type environment map[string]string

// newEnvironment parses the form of [os.Environ].
func newEnvironment(lines []string) environment {
	e := make(environment, len(lines))
	for _, line := range lines {
		name, value, _ := strings.Cut(line, "=")
		if _, twice := e[name]; !twice { // as in os.LookupEnv
			e[name] = value
		}
	}
	return e
}

// ofService matches the variables that Kubernetes sets in pods for a service
// named flanneld: FLANNELD_SERVICE_HOST, FLANNELD_PORT_8285_UDP_ADDR.
var ofService = regexp.MustCompile(`^FLANNELD_(SERVICE_(HOST|PORT)|PORT)(_|$)`)

// unknown returns the variables that look like flags but match none, each with
// the flag that was probably meant.
func (e environment) unknown() []ignoredFlag {
	var known []string
	for _, name := range names() {
		known = append(known, etcdflags.Variable(name))
	}
	var all []ignoredFlag
	for _, name := range slices.Sorted(maps.Keys(e)) {
		if !strings.HasPrefix(name, etcdflags.Variable("")) || slices.Contains(known, name) || ofService.MatchString(name) {
			continue
		}
		why := "no flag has that name; --help lists them"
		if near := nearest(name, known); near != "" {
			why = "no flag has that name; did you mean " + near + "?"
		}
		all = append(all, ignoredFlag{name, why})
	}
	return all
}
