-- Whether rows may be dense in the tables of a parent ($1): whoever reads them must know of it. It has their arrays, and no view
-- reads it without: neither the one for people from before there were dense rows, which is made anew only behind a flip, nor
-- one of the people's own. Such a view would show the first cell of each row alone.
select exists (
    select from pg_attribute further
    where further.attrelid = to_regclass($1) and further.attname = '_bucket'
      and not exists (
          select from pg_depend d
          where d.classid = 'pg_rewrite'::regclass
            and d.refclassid = 'pg_class'::regclass and d.refobjid = further.attrelid
          group by d.objid
          having not bool_or(d.refobjsubid = further.attnum)))
