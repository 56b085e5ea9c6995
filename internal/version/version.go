// Package version knows which version of twill a binary is.
package version

import "runtime/debug"

// String returns the version of the running binary, as the go command stamped it:
// a tag, or a pseudo-version with the commit, "+dirty" if files differed.
// It is "devel" where the build had no version control to ask.
func String() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return info.Main.Version
}
