// Package release has no code. Its module pins, by the tool lines of go.mod, what
// "make release" runs besides the go command.
package release
