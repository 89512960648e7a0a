-- Diginetica's files as interactions and items; run from the folder that holds data/
-- A session is a user here, because most views have no userId
COPY (
    SELECT 's' || sessionId AS user_id, itemId AS item_id, event_type,
           epoch(eventdate::TIMESTAMP)::BIGINT + timeframe::BIGINT // 1000 AS timestamp
    FROM (
        SELECT sessionId, itemId, timeframe, eventdate, 'view' AS event_type
        FROM read_csv('data/diginetica/train-item-views.csv', delim = ';', all_varchar = true)
        UNION ALL
        SELECT sessionId, itemId, timeframe, eventdate, 'purchase' AS event_type
        FROM read_csv('data/diginetica/train-purchases.csv', delim = ';', all_varchar = true)
    )
) TO 'data/diginetica/interactions.parquet';
-- Names are numbers of hashed words; prices are given as logarithms to the base 2
COPY (
    SELECT p.itemId AS item_id, 2 ** p.pricelog2::DOUBLE AS price, c.categoryId AS category_l1
    FROM read_csv('data/diginetica/products.csv', delim = ';', all_varchar = true) AS p
    LEFT JOIN read_csv('data/diginetica/product-categories.csv', delim = ';', all_varchar = true) AS c
    USING (itemId)
) TO 'data/diginetica/items.parquet';
