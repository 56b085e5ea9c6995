package daemon

import "github.com/twillnet/twill/lease"

// CheckConfig says why twilld could not run a network config that is sound in
// itself: it has not the backend, or not with these options.
func CheckConfig(c *lease.Config) error {
	_, err := backendFor(backends, c)
	return err
}
