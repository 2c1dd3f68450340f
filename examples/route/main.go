// Command route is an extension that publishes sandboxes through a reverse proxy: while one is ready, a file says to the
// proxy where it is reached. README.md says how, and what becomes of one that cannot be published.
package main

import "github.com/sandgate/sandgate/plugin"

func main() { _ = plugin.Serve(&routes{}) } // it has said what was wrong
