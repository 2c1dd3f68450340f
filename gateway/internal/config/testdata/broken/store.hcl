store "sqlit" {}
driver "native" {}
